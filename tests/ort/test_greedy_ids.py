"""Tokens that the graph picks are those that the core's sampler picks from its logits, whatever else is wanted."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paged_driver import PagedSequence, Work, load_runner, pack

from backends.ort.kernels.library import kernel_status
from export import export_model
from nanovllm import LLM, SamplingParams
from nanovllm.batch import Batch, LogitsEdits, SamplingBatch, StepOutput
from nanovllm.plugins import LogitsModelRunner
from nanovllm.testing import tiny_config, write_checkpoint

BLOCK_SIZE = 8
VOCAB_SIZE = 3000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("greedy")
    checkpoint = write_checkpoint(root / "checkpoint", tiny_config(vocab_size=VOCAB_SIZE, hidden_size=200))
    return export_model(checkpoint, root / "export", precision="int8", progress=False).folder


@pytest.fixture(scope="module", params=["kernels", "stock bodies"])
def runner(request: pytest.FixtureRequest, folder: Path) -> Iterator[LogitsModelRunner]:
    if request.param == "kernels" and kernel_status().library is None:
        pytest.skip("the kernel library is not built")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "stock bodies":
            patch.setenv("NANOVLLM_KERNELS", "0")
        runner = load_runner(folder)
    runner.allocate_kv_cache(128, BLOCK_SIZE)
    yield runner
    runner.close()


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Chunks of several sequences, of which no row, the last one or all are wanted, in all the ways there are."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    work, free = [], random.permutation(128).tolist()
    for num_tokens in draw(st.lists(st.integers(1, 12), min_size=1, max_size=6)):
        sequence = PagedSequence(random.integers(0, VOCAB_SIZE, num_tokens).tolist(), [free.pop(), free.pop()])
        work.append(Work(sequence, num_tokens, draw(st.sampled_from(["last", "all", "none"]))))
    batch = pack(work, BLOCK_SIZE)
    size = batch.num_logits
    rows = batch.sampling.rows.copy()
    rows["top_p"], rows["seed"] = 1, random.integers(0, 99, size)
    rows["temperature"] = np.where(random.random(size) < draw(st.sampled_from([0, 0.5, 1])), 0, 0.8)
    some = random.random((3, size)) < draw(st.sampled_from([0, 0, 0.3]))
    sampling = SamplingBatch(
        rows,
        np.arange(size),
        {i: LogitsEdits(banned=np.array([5, 7])) for i in np.flatnonzero(some[0]).tolist()},
        np.where(some[1], 2, -1).astype(np.int32) if draw(st.booleans()) else None,
        np.where(some[2], 9, -1) if draw(st.booleans()) else None,
    )
    return replace(batch, sampling=sampling)


def told(output: StepOutput) -> Any:
    logprobs = output.logprobs or []
    return (
        [list(ids) for ids in output.token_ids],
        [row and (row.token_ids.tolist(), row.logprobs.tolist(), row.rank) for row in logprobs],
    )


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(batch=batches())
def test_a_step_gives_what_it_gives_by_its_logits(runner: LogitsModelRunner, batch: Batch) -> None:
    assert told(runner.execute(batch)) == told(LogitsModelRunner.execute(runner, batch))


@pytest.mark.parametrize("kernels", ["1", "0"])
def test_the_engine_gives_the_same_tokens_where_logits_are_asked_for(
    kernels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log-probabilities make a row one of logits; drafts give several rows of a sequence."""
    monkeypatch.setenv("NANOVLLM_KERNELS", kernels)
    folder = export_model("tiny-chat", tmp_path / "export", precision="int4", progress=False).folder
    prompts = ["List three animals.", "Count: 1, 2, 3, 1, 2, 3, 1, 2,", "Hello!"]
    with LLM(str(folder), num_threads=1, max_model_len=256) as llm:
        params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
        greedy = llm.generate(prompts, params)
        by_logits = llm.generate(prompts, replace(params, logprobs=0))
        mixed = llm.generate(prompts, [params, replace(params, prompt_logprobs=1), replace(params, logprobs=1)])
    with LLM(str(folder), num_threads=1, max_model_len=256, speculative_config={"num_speculative_tokens": 4}) as llm:
        drafted = llm.generate(prompts, params)
    tokens = [[output.outputs[0].token_ids for output in outputs] for outputs in (greedy, by_logits, mixed, drafted)]
    assert tokens == [tokens[0]] * 4
