"""Several processes compute what one computes, through the engine, `LLM` and the command line."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_driver import load_parallel, worker_ids

from backends.pytorch.parallel.interrupts import interrupts_after
from nanovllm import LLM, SamplingParams
from nanovllm.batch import SAMPLING_ROW, Batch, SamplingBatch
from nanovllm.errors import BackendError, BackendLostError, KVCacheError
from nanovllm.plugins import LogitsModelRunner
from nanovllm.testing import (
    ReferenceModel,
    assert_same_tokens,
    make_engine,
    run_requests,
    teacher_forced_logits,
    tiny_config,
    write_checkpoint,
)

ATOL = 1e-4
MIXTURE: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "norm_topk_prob": True,
}
GLOO = "sums by gloo"
CONFIGS: dict[str, dict[str, Any]] = {
    "two KV heads, biases, a tied head": {},
    "one KV head, an untied head": {
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "tie_word_embeddings": False,
    },
    "experts": MIXTURE,
    GLOO: {},
}
ANSWER = "The capital of France is Paris."
QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module", params=CONFIGS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A checkpoint, and the collective that its ranks use."""
    folder = write_checkpoint(tmp_path_factory.mktemp("model"), tiny_config(**CONFIGS[request.param]))
    return folder, "gloo" if request.param == GLOO else "auto"


@pytest.fixture(scope="module")
def folder(case: tuple[Path, str]) -> Path:
    return case[0]


@pytest.fixture(scope="module")
def runner(case: tuple[Path, str]) -> Iterator[LogitsModelRunner]:
    runner = load_parallel(case[0], collective=case[1])
    yield runner
    runner.close()


@settings(max_examples=10)
@given(data=st.data())
def test_any_prompts_in_any_chunks_give_the_oracles_tokens(
    folder: Path, runner: LogitsModelRunner, data: st.DataObject
) -> None:
    lens = data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=6), "prompt lengths")
    random = np.random.default_rng(data.draw(st.integers(0, 99), "seed"))
    shared = random.integers(0, 211, 20).tolist()
    prompts = [shared[: data.draw(st.integers(0, 20))] + random.integers(0, 211, n).tolist() for n in lens]
    engine = make_engine(
        runner,
        max_num_seqs=data.draw(st.integers(1, 6), "sequences"),
        max_num_batched_tokens=data.draw(st.sampled_from([6, 17, 40, 200]), "tokens of a step"),
        block_size=data.draw(st.sampled_from([1, 4, 16]), "block size"),
        num_kv_blocks=600,
        max_model_len=100,
    )
    reference = ReferenceModel(folder)
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    for prompt, output in zip(prompts, run_requests(engine, prompts, params), strict=True):
        assert_same_tokens(reference.logits, prompt, output.outputs[0].token_ids, near_tie=2 * ATOL, min_share=0)


def test_its_logits_are_the_oracles(folder: Path, runner: LogitsModelRunner) -> None:
    tokens = np.random.default_rng(2).integers(0, 211, 60).tolist()
    logits = teacher_forced_logits(runner, tokens, block_size=8)
    np.testing.assert_allclose(logits, ReferenceModel(folder).logits(tokens), atol=ATOL, rtol=0)


def test_to_the_engine_it_is_the_whole_model(folder: Path, runner: LogitsModelRunner) -> None:
    config = json.loads((folder / "config.json").read_text())
    info = runner.model_info
    assert (info.num_heads, info.num_kv_heads) == (config["num_attention_heads"], config["num_key_value_heads"])
    kv_heads = max(info.num_kv_heads, 2)  # each of the two has one at least
    assert runner.kv_bytes_per_block(16) == 16 * 2 * info.num_layers * kv_heads * info.head_dim * 4


def test_a_step_that_fails_on_all_ranks_is_an_error_and_the_next_one_works(
    folder: Path, runner: LogitsModelRunner
) -> None:
    for _ in range(2):
        with pytest.raises(BackendError, match="step of 3 tokens") as raised:
            teacher_forced_logits(runner, [1, 10**6, 2])
        assert not isinstance(raised.value, BackendLostError)
        np.testing.assert_allclose(
            teacher_forced_logits(runner, [1, 2, 3]), ReferenceModel(folder).logits([1, 2, 3]), atol=ATOL, rtol=0
        )


def test_a_pool_that_no_machine_holds_is_refused_and_a_smaller_one_is_not(runner: LogitsModelRunner) -> None:
    with pytest.raises(KVCacheError, match="Lower num_kv_blocks"):
        runner.allocate_kv_cache(10**9, 1024)
    for _ in range(2):
        with pytest.raises(BackendError, match="allocate_kv_cache first"):
            runner.forward(batch_of_one_token())
    runner.allocate_kv_cache(4, 8)
    assert runner.forward(batch_of_one_token()).shape == (1, 211)


def batch_of_one_token() -> Batch:
    zero, one = np.zeros(1, np.int32), np.array([0, 1], np.int32)
    return Batch(
        seq_ids=[0],
        released_seq_ids=[],
        token_ids=np.zeros(1, np.int64),
        positions=np.zeros(1, np.int64),
        query_start=one,
        context_lens=zero,
        block_tables=zero[None],
        slot_mapping=zero,
        logits_indices=zero,
        logits_start=one,
        adapter_ids=zero,
        sampling=SamplingBatch(np.zeros(1, SAMPLING_ROW), np.ones(1, np.int64)),
    )


def test_threads_are_shared_out(folder: Path, runner: LogitsModelRunner) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    teacher_forced_logits(runner, [1, 2])
    assert torch.get_num_threads() == 1, "of two threads each of two processes has one"
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("tiny-chat", tensor_parallel_size=2, num_threads=2) as llm:
        yield llm


def answer(llm: LLM) -> str:
    (output,) = llm.chat([[{"role": "user", "content": QUESTION}]], SamplingParams(temperature=0))
    return output.outputs[0].text


def test_the_size_is_all_that_a_user_gives(llm: LLM) -> None:
    assert len(worker_ids(os.getpid())) >= 1
    assert answer(llm) == ANSWER


def test_ctrl_c_ends_what_runs_and_leaves_the_model_usable(llm: LLM) -> None:
    for delay_s in (0.2, 0.31, 0.45):
        timer = threading.Timer(delay_s, partial(os.kill, os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            llm.generate(["a"] * 20, SamplingParams(max_tokens=1500, ignore_eos=True))
        timer.join()
        assert answer(llm) == ANSWER


def test_a_second_ctrl_c_is_not_put_off() -> None:
    seen = []

    def step() -> None:
        with interrupts_after():
            os.kill(os.getpid(), signal.SIGINT)
            seen.append("after the first")
            os.kill(os.getpid(), signal.SIGINT)
            seen.append("after the second")

    with pytest.raises(KeyboardInterrupt):
        step()
    assert seen == ["after the first"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


SCRIPT = """
from nanovllm import LLM, SamplingParams
llm = LLM("tiny-chat", tensor_parallel_size=2, num_threads=2)
print(llm.chat([[{"role": "user", "content": "What is the capital of France?"}]])[0].outputs[0].text)
"""


def test_a_script_needs_no_main_guard_and_no_close_and_leaves_nothing(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    (tmp_path / "temporary").mkdir()
    done = run([sys.executable, str(script)], TMPDIR=str(tmp_path / "temporary"))
    assert done.stdout.strip() == ANSWER
    assert done.stderr == ""
    assert list((tmp_path / "temporary").glob("nanovllm*")) == []


def test_the_command_line_has_it() -> None:
    command = [sys.executable, "-m", "nanovllm", "generate", "--tensor-parallel-size", "2", "--num-threads", "2"]
    assert run([*command, QUESTION]).stdout.strip() == ANSWER


def run(command: list[str], **variables: str) -> "subprocess.CompletedProcess[str]":
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    environment = {**os.environ, "PYTHONPATH": path, **variables}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=100)
    assert done.returncode == 0, done.stderr
    return done
