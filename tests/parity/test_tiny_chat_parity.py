"""tiny-chat on ONNX Runtime through the engine, seven ways, against transformers' greedy generation."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from backends.ort.plugin import nanovllm_model_runners
from export import export_model
from nanovllm import LLM, SamplingParams
from nanovllm.checkpoint import resolve_model
from nanovllm.config import EngineConfig
from nanovllm.plugins import LogitsModelRunner, ModelSource
from nanovllm.testing import ReferenceModel, teacher_forced_logits
from tests.tiny_chat_reference import NUM_TOKENS, QUESTIONS, Reference, tiny_chat_reference


@pytest.fixture(scope="module")
def reference() -> Reference:
    return tiny_chat_reference()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model("tiny-chat", tmp_path_factory.mktemp("export") / "tiny-chat", progress=False).folder


GREEDY = SamplingParams(temperature=0, max_tokens=NUM_TOKENS)


def generate(llm: LLM, prompts: list[list[int]]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in llm.generate(prompts, GREEDY)]


@pytest.fixture
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(str(folder)) as llm:
        yield llm


def test_all_in_one_batch(llm: LLM, reference: Reference) -> None:
    reference.check(generate(llm, reference.prompts))
    assert llm.stats().num_steps < 4 * NUM_TOKENS, "they did not run together"


def test_one_at_a_time(llm: LLM, reference: Reference) -> None:
    reference.check([generate(llm, [prompt])[0] for prompt in reference.prompts])


def test_one_at_a_time_without_a_prefix_cache(folder: Path, reference: Reference) -> None:
    with LLM(str(folder), enable_prefix_caching=False) as llm:
        reference.check([generate(llm, [prompt])[0] for prompt in reference.prompts])
        assert llm.stats().prefix_cache_hits == 0


def test_with_prompts_cut_into_chunks(folder: Path, reference: Reference) -> None:
    assert any(len(prompt) > 16 for prompt in reference.prompts)
    with LLM(str(folder), max_num_batched_tokens=16, max_num_seqs=16) as llm:
        reference.check(generate(llm, reference.prompts))


def test_with_requests_preempted(folder: Path, reference: Reference) -> None:
    with LLM(str(folder), max_model_len=128, block_size=8, num_kv_blocks=40) as llm:
        reference.check(generate(llm, reference.prompts))
        assert llm.stats().num_preemptions > 0


def test_on_a_warm_prefix_cache(folder: Path, reference: Reference) -> None:
    with LLM(str(folder), block_size=8) as llm:
        generate(llm, reference.prompts)
        outputs = llm.generate(reference.prompts, GREEDY)
        reference.check([output.outputs[0].token_ids for output in outputs])
        assert all(output.num_cached_tokens for output in outputs)


def test_with_tokens_guessed_and_verified(folder: Path, reference: Reference) -> None:
    with LLM(str(folder), speculative_config={"max_num_seqs": 8, "prompt_lookup_min": 1}) as llm:
        reference.check([generate(llm, [prompt])[0] for prompt in reference.prompts])
        assert llm.stats().num_accepted_tokens > 0


def test_int8_samples_the_same_tokens_with_guesses_and_without(folder: Path, tmp_path: Path) -> None:
    """Every row of an int8 product is computed alike whatever stands beside it, so this holds at any temperature."""
    export_model("tiny-chat", tmp_path / "int8", precision="int8", progress=False)
    params = SamplingParams(temperature=1.0, top_p=0.95, seed=3, max_tokens=NUM_TOKENS)
    conversations = [[{"role": "user", "content": question}] for question in QUESTIONS]
    texts = []
    for options in ({}, {"speculative_config": {"max_num_seqs": 64, "prompt_lookup_min": 1}}):
        with LLM(str(tmp_path / "int8"), **options) as llm:
            texts.append([output.outputs[0].token_ids for output in llm.chat(conversations, params)])
            num_accepted = llm.stats().num_accepted_tokens
    assert texts[0] == texts[1]
    assert num_accepted > 0


def test_from_the_checkpoint_through_chat(
    reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOVLLM_CACHE", str(tmp_path))
    with LLM("tiny-chat") as llm:
        outputs = llm.chat([[{"role": "user", "content": question}] for question in QUESTIONS], GREEDY)
    assert [output.prompt_token_ids for output in outputs] == reference.prompts, "template or tokenizer differ"
    reference.check([output.outputs[0].token_ids for output in outputs])
    assert outputs[0].outputs[0].text == "The capital of France is Paris."
    assert outputs[0].outputs[0].finish_reason == "stop"


def test_text_streams_as_it_is_made(llm: LLM, reference: Reference) -> None:
    texts, num_steps = [], []
    for output in llm.stream(reference.prompts[7], GREEDY):
        texts.append(output.outputs[0].text)
        num_steps.append(llm.stats().num_steps)
    assert len(texts) == len(reference.continuations[7])
    assert num_steps == list(range(1, len(texts) + 1)), "an output was held back"
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert texts[-1] == llm.tokenizer.decode(reference.continuations[7])


def make_runner(folder: Path) -> LogitsModelRunner:
    plugin = next(iter(nanovllm_model_runners()))
    runner = plugin.factory(ModelSource(str(folder), folder), EngineConfig(model=str(folder)))
    assert isinstance(runner, LogitsModelRunner)
    return runner


def test_logits_at_every_position_are_those_of_transformers(folder: Path, reference: Reference) -> None:
    for prompt, tokens, expected in zip(reference.prompts, reference.continuations, reference.logits, strict=True):
        runner = make_runner(folder)
        np.testing.assert_allclose(teacher_forced_logits(runner, prompt + tokens), expected, atol=1e-4, rtol=0)
        runner.close()


def test_the_numpy_reference_is_transformers(reference: Reference) -> None:
    model = ReferenceModel(resolve_model("tiny-chat"))
    for prompt, tokens, expected in zip(reference.prompts, reference.continuations, reference.logits, strict=True):
        np.testing.assert_allclose(model.logits(prompt + tokens), expected, atol=1e-4, rtol=0)
