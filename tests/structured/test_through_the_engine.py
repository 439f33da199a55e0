"""Structured outputs of whole requests: in their form whatever the temperature, or reported as cut by the length."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from nanovllm import LLM, FinishReason, RequestOutput, SamplingParams, SamplingParamsError, StructuredOutputsParams
from tests.structured.schemas import SCHEMAS

HOT = SamplingParams(temperature=2.0, max_tokens=60)


def loaded(**options: Any) -> LLM:
    defaults = {"num_kv_blocks": 256, "max_model_len": 512, "block_size": 8, "max_num_seqs": 4}
    return LLM("tiny-chat", backend="mock", **{**defaults, **options})


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with loaded(max_num_seqs=16) as llm:
        yield llm


def asked(schema: dict[str, Any], **fields: Any) -> SamplingParams:
    return replace(HOT, structured_outputs=StructuredOutputsParams(json=schema), **fields)


def answers(outputs: list[RequestOutput]) -> list[tuple[str, object]]:
    return [(output.outputs[0].text, output.outputs[0].finish_reason) for output in outputs]


def test_every_output_validates_or_says_that_it_was_cut(llm: LLM) -> None:
    names = list(SCHEMAS) * 2
    params = [asked(SCHEMAS[name], seed=i, max_tokens=60 if i % 2 else 400) for i, name in enumerate(names)]
    outputs = llm.generate([f"question {i}" for i in range(len(names))], params)
    num_whole = 0
    for name, output in zip(names, outputs, strict=True):
        completion = output.outputs[0]
        if completion.finish_reason is FinishReason.STOP:
            jsonschema.validate(json.loads(completion.text), SCHEMAS[name])
            num_whole += 1
        else:
            assert completion.finish_reason is FinishReason.LENGTH
    assert num_whole > len(names) // 2
    assert num_whole < len(names), "nothing was cut: the limit is no pressure"


def test_a_form_beside_requests_without_one_disturbs_neither(llm: LLM) -> None:
    plain = replace(HOT, seed=3)
    form = asked(SCHEMAS["person"], seed=4)
    alone = answers([llm.generate("a", plain)[0], llm.generate("b", form)[0]])
    mixed = llm.generate(["a", "b", "a", "b"], [plain, form, plain, form])
    assert answers(mixed) == alone * 2


@pytest.mark.parametrize(
    "options",
    [
        {"max_num_batched_tokens": 16, "max_num_seqs": 4},
        {"speculative_config": {"num_speculative_tokens": 4, "prompt_lookup_min": 1, "min_acceptance_rate": 0.0}},
        {"num_kv_blocks": 64, "max_num_seqs": 16},
    ],
    ids=["chunked", "speculated", "preempted"],
)
def test_the_output_does_not_depend_on_how_it_is_computed(llm: LLM, options: dict[str, Any]) -> None:
    prompts = [f'{{"name": "question {i}", "tags": [{i}, {i}]}} ' * 4 for i in range(12)]
    forms = ["person", "nested", "map of integers", "array of integers"]
    params = [asked(SCHEMAS[forms[i % 4]], seed=i, repetition_penalty=1.1) for i in range(12)]
    expected = answers(llm.generate(prompts, params))
    with loaded(**options) as other:
        assert answers(other.generate(prompts, params)) == expected
        if "speculative_config" in options:
            assert other.stats().num_draft_tokens > 0
        if "num_kv_blocks" in options:
            assert other.stats().num_preemptions > 0


def test_continuations_of_one_prompt_keep_their_forms_apart(llm: LLM) -> None:
    (output,) = llm.generate("pick", asked(SCHEMAS["person"], n=5, seed=1, max_tokens=200))
    texts = [completion.text for completion in output.outputs if completion.finish_reason is FinishReason.STOP]
    assert len(set(texts)) == len(texts) > 1
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMAS["person"])


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ({"regex": r"[a-f]{3}-\d+"}, r"[a-f]{3}-\d+"),
        ({"choice": ["yes", "no", "perhaps"]}, "yes|no|perhaps"),
        ({"grammar": 'start: "(" NUMBER ("," NUMBER)* ")"\nNUMBER: /[0-9]/'}, r"\(\d(,\d)*\)"),
    ],
)
def test_regex_choice_and_grammar_hold_in_whole_requests(llm: LLM, form: dict[str, Any], pattern: str) -> None:
    params = replace(HOT, structured_outputs=StructuredOutputsParams(**form), max_tokens=200, min_tokens=2)
    for output in llm.generate(["one", "two", "three"], params):
        assert output.outputs[0].finish_reason is FinishReason.STOP
        assert re.fullmatch(pattern, output.outputs[0].text)


def test_a_form_that_cannot_be_enforced_is_refused_before_anything_starts(llm: LLM) -> None:
    before = llm.stats().num_finished_requests
    with pytest.raises(SamplingParamsError, match="unclosed group"):
        llm.generate(["a", "b"], [HOT, replace(HOT, structured_outputs=StructuredOutputsParams(regex="(a"))])
    assert llm.stats().num_finished_requests == before


def test_a_form_and_allowed_tokens_that_contradict_each_other_end_that_request_alone(llm: LLM) -> None:
    from nanovllm import BackendError

    impossible = asked(SCHEMAS["boolean"], allowed_token_ids=llm.tokenizer.encode("zebra"))
    with pytest.raises(BackendError, match="no token"):
        llm.generate(["a"], impossible)
    assert llm.stats().num_free_kv_blocks == llm.stats().num_kv_blocks
    assert llm.generate("b", HOT)[0].finished
