"""Whole models on the Triton kernels, interpreted, compute what they compute on the CPU's own path."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from backends.pytorch.cpu_attention import CPUAttention
from backends.pytorch.load import DeviceParts, load_device_runner
from nanovllm import SamplingParams
from nanovllm.checkpoint import Checkpoint
from nanovllm.errors import BackendError, KVCacheError
from nanovllm.plugins import LogitsModelRunner
from nanovllm.testing import (
    ReferenceModel,
    make_engine,
    run_requests,
    teacher_forced_logits,
    tiny_config,
    write_checkpoint,
)
from tests.architectures.family_configs import CASES, Case
from tests.pytorch.device_driver import LIMITS, RerunGraph, Sequences, load_device, sampling_row
from tests.pytorch.torch_driver import load_runner

pytestmark = pytest.mark.usefixtures("interpreted")

WINDOWS = {"use_sliding_window": True, "sliding_window": 11, "max_window_layers": 1}
TOKENS = np.random.default_rng(1).integers(0, 97, 50).tolist()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_it_gives_the_logits_of_the_oracle(tmp_path: Path, dtype: str) -> None:
    folder = write_checkpoint(tmp_path / "model", tiny_config(**WINDOWS))
    logits = teacher_forced_logits(load_device(folder, triton=True, dtype=dtype), TOKENS, block_size=8)
    expected = ReferenceModel(folder).logits(TOKENS)
    error = np.abs(logits - expected).max() / np.abs(expected).max()
    assert error < {"float32": 2e-5, "bfloat16": 0.06, "float16": 0.01}[dtype]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_family_gives_the_logits_of_the_cpu(tmp_path: Path, case: Case) -> None:
    folder = write_checkpoint(tmp_path / "model", case.config)
    logits, expected = (
        teacher_forced_logits(runner, TOKENS, block_size=8)
        for runner in (load_device(folder, triton=True), load_runner(folder))
    )
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)


CONFIGS: dict[str, dict[str, Any]] = {
    "grouped heads, a window in one layer": {**WINDOWS},
    "norms of heads": {"model_type": "qwen3"},
    "one KV head, untied": {"num_attention_heads": 4, "num_key_value_heads": 1, "tie_word_embeddings": False},
}


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_chunks_decodes_and_replayed_graphs_give_the_tokens_of_the_cpu(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = write_checkpoint(tmp_path / "model", tiny_config(**changes))
    expected = tokens_of(load_runner(folder))
    assert tokens_of(load_device(folder, triton=True, capture=RerunGraph)) == expected
    assert tokens_of(load_device(folder, triton=True)) == expected


def tokens_of(runner: LogitsModelRunner) -> list[list[int]]:
    """Greedy and drawn continuations of a few prompts, one of them in chunks."""
    engine = make_engine(runner, max_num_seqs=9, max_num_batched_tokens=24, block_size=8, max_model_len=128)
    drawn = SamplingParams(temperature=0.8, top_p=0.9, seed=1, max_tokens=5, ignore_eos=True)
    greedy = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    outputs = run_requests(engine, [list(range(3, 40)), [7], list(range(50, 61))], [greedy, drawn, greedy])
    engine.close()
    return [output.outputs[0].token_ids for output in outputs]


def test_graphs_that_divide_long_sequences_give_the_tokens_of_the_cpu(tmp_path: Path) -> None:
    """The bound of a sequence's length, not its length, decides into how many parts a graph divides it."""
    folder = write_checkpoint(tmp_path / "model", tiny_config(max_position_embeddings=2048))
    limits = replace(LIMITS, max_model_len=2048)
    runner = load_device(folder, triton=True, capture=RerunGraph, limits=limits)
    assert tokens_of(runner) == tokens_of(load_runner(folder))


@pytest.mark.filterwarnings("ignore:(All-NaN slice|invalid value|overflow):RuntimeWarning")  # numpy's, interpreted
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_a_sequence_of_nan_leaves_in_its_blocks_reaches_nobody(tmp_path: Path, dtype: str) -> None:
    folder = write_checkpoint(tmp_path / "model")
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["model.embed_tokens.weight"][200] = math.inf
    save_file(weights, path)
    runner = load_device(folder, triton=True, dtype=dtype)
    first, second = Sequences(sampling_row()), Sequences(sampling_row())
    runner.allocate_kv_cache(first.total_blocks, first.block_size)
    (expected,) = runner.forward(first.step({0: [1, 2, 3]}))
    assert np.isnan(runner.forward(Sequences(sampling_row()).step({0: [200] * 64}))).all()
    (logits,) = runner.forward(second.step({0: [1, 2, 3]}))
    np.testing.assert_array_equal(logits, expected)
    assert np.isfinite(expected).any()


def test_a_block_size_that_the_kernels_do_not_take_is_refused(tmp_path: Path) -> None:
    runner = load_device(write_checkpoint(tmp_path / "model"), triton=True)
    with pytest.raises(KVCacheError, match="block_size is 24; on this device it must be a power of two"):
        runner.allocate_kv_cache(4, 24)


def test_a_kernel_that_the_device_has_no_room_for_is_a_backend_error(tmp_path: Path) -> None:
    from triton.runtime.errors import OutOfResources

    class TooLarge(CPUAttention):
        def plan(self, step: Any) -> Any:
            raise OutOfResources(2**20, 2**17, "shared memory")

    runner = load_device_runner(
        Checkpoint(write_checkpoint(tmp_path / "model", tiny_config())),
        torch.device("cpu"),
        DeviceParts(make_attention=TooLarge),
        name="model",
        dtype="float32",
        limits=LIMITS,
    )
    with pytest.raises(BackendError, match="shared memory"):
        runner.allocate_kv_cache(4, 8)
