"""A model on the compiled kernels, with each dtype of the KV cache: what happens around a request changes no bit of it.

The model is tiny-chat in int8, whose layers compute every row by itself, so that nothing else may differ either.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from export import export_model
from export.paged_attention import KV_DTYPES
from nanovllm import LLM, SamplingParams
from nanovllm.outputs import RequestOutput

GREEDY = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, logprobs=3)
OPENING = "Here are some questions. Please answer each of them briefly, and in the order in which they are asked. " * 4
PROMPTS = [
    OPENING + question
    for question in ("What is the capital of France?", "What is 2 + 3?", "Hello!", "What colour is the sky?")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model("tiny-chat", tmp_path_factory.mktemp("kv") / "export", precision="int8", progress=False).folder


@pytest.fixture(params=KV_DTYPES)
def options(request: pytest.FixtureRequest, kernel_library: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("NANOVLLM_KERNELS", str(kernel_library))
    return {"kv_cache_dtype": request.param, "num_threads": 2, "max_model_len": 512}


def answers(outputs: Sequence[RequestOutput]) -> list[Any]:
    """Tokens, and log-probabilities to the last bit."""
    return [(output.outputs[0].token_ids, output.outputs[0].logprobs) for output in outputs]


def alone(folder: Path, options: dict[str, Any]) -> list[Any]:
    """Each prompt by itself, computed from its start in one step."""
    with LLM(str(folder), **options, enable_prefix_caching=False) as llm:
        return [answer for prompt in PROMPTS for answer in answers(llm.generate([prompt], GREEDY))]


def test_chunks_give_what_whole_prompts_give(folder: Path, options: dict[str, Any]) -> None:
    with LLM(str(folder), **options, max_num_batched_tokens=24, max_num_seqs=4, enable_prefix_caching=False) as llm:
        assert answers(llm.generate(PROMPTS, GREEDY)) == alone(folder, options)


def test_a_cached_prefix_gives_what_computing_it_gives(folder: Path, options: dict[str, Any]) -> None:
    with LLM(str(folder), **options) as llm:
        llm.generate(PROMPTS[:1], GREEDY)
        again = llm.generate(PROMPTS, GREEDY)
        assert all(output.num_cached_tokens > 50 for output in again)
        assert answers(again) == alone(folder, options)


def test_preempted_requests_give_what_undisturbed_ones_give(folder: Path, options: dict[str, Any]) -> None:
    options = {**options, "block_size": 16, "max_model_len": 256}
    with LLM(str(folder), **options, num_kv_blocks=22, enable_prefix_caching=False) as llm:
        found = answers(llm.generate(PROMPTS, GREEDY))
        assert llm.stats().num_preemptions > 0
    assert found == alone(folder, options)
