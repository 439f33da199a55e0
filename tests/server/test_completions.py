"""/v1/completions gives what the library gives, in OpenAI's form."""

from typing import Any

import pytest
from event_stream import added_up, events_of
from hypothesis import given, settings
from hypothesis import strategies as st
from live_server import LiveServer

from nanovllm import LLM, SamplingParams

URL = "/v1/completions"
TEXT = "The capital of France is"

prompts = st.one_of(
    st.sampled_from([TEXT, "Two plus two is", "Héllo wörld 😀"]),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
    st.lists(st.integers(0, 2047), min_size=1, max_size=20),
)
sampling = st.fixed_dictionaries(
    {
        "seed": st.integers(-(2**63), 2**63 - 1),
        "max_tokens": st.integers(1, 24),
        "temperature": st.sampled_from([0, 1]),
    },
    optional={
        "top_p": st.floats(0.05, 1),
        "top_k": st.integers(-1, 50),
        "min_p": st.floats(0, 1),
        "presence_penalty": st.floats(-2, 2),
        "repetition_penalty": st.floats(0.5, 2),
        "stop": st.sampled_from([".", [" is", "e"], [], ["\n\n"]]),
        "ignore_eos": st.booleans(),
        "min_tokens": st.just(1),
        "include_stop_str_in_output": st.booleans(),
        "skip_special_tokens": st.booleans(),
        "logprobs": st.integers(0, 3),
        "allowed_token_ids": st.lists(st.integers(0, 2047), min_size=1, max_size=9),
    },
)


@settings(max_examples=40)
@given(prompt=prompts, options=sampling)
def test_streamed_unstreamed_and_library_give_the_same_continuation(
    tiny_chat: LiveServer, library: LLM, prompt: str | list[int], options: dict[str, Any]
) -> None:
    body = {"prompt": prompt, "return_token_ids": True, **options}
    whole = tiny_chat.answer(URL, **body)["choices"]
    streamed = added_up(events_of(tiny_chat.post(URL, **body, stream=True).text))
    (output,) = library.generate(prompt, SamplingParams.from_options(options))
    expected = output.outputs[0]
    assert len(whole) == len(streamed) == 1
    for choice in (whole[0], streamed[0]):
        assert choice["text"] == expected.text
        assert choice["token_ids"] == expected.token_ids
        assert choice["finish_reason"] == expected.finish_reason
        assert choice["stop_reason"] == expected.stop_reason
    assert streamed[0]["logprobs"] == whole[0]["logprobs"]
    assert (whole[0]["logprobs"] is not None) == ("logprobs" in options)


@settings(max_examples=20)
@given(
    prompt=prompts, num_top=st.integers(0, 5), n=st.integers(1, 3), max_tokens=st.integers(0, 4), stream=st.booleans()
)
def test_echoed_logprobs_are_the_prompt_logprobs(
    tiny_chat: LiveServer, library: LLM, prompt: str, num_top: int, n: int, max_tokens: int, stream: bool
) -> None:
    body = {"prompt": prompt, "n": n, "max_tokens": max_tokens, "logprobs": num_top, "seed": 1, "stream": stream}
    response = tiny_chat.post(URL, **body, echo=True)
    choices = added_up(events_of(response.text)).values() if stream else response.json()["choices"]
    params = SamplingParams(max_tokens=1, prompt_logprobs=num_top)
    (output,) = library.generate(prompt, params)
    assert output.prompt_logprobs is not None
    ids = output.prompt_token_ids
    own = [None, *(entry[i].logprob for i, entry in zip(ids[1:], output.prompt_logprobs[1:], strict=True))]
    assert [choice["index"] for choice in choices] == list(range(n))
    for choice in choices:
        told = choice["logprobs"]
        assert told["token_logprobs"][: len(ids)] == pytest.approx(own, abs=1e-4, nan_ok=True)
        assert len({len(told[name]) for name in told}) == 1
        assert len(told["tokens"]) <= len(ids) + max_tokens
        assert told["top_logprobs"][0] is None
        for own_logprob, top in zip(told["token_logprobs"][1:], told["top_logprobs"][1:], strict=True):
            assert own_logprob in top.values()
            assert len(top) <= num_top + 1
        if isinstance(prompt, str):
            assert choice["text"].startswith(prompt)


def test_offsets_point_at_the_tokens_also_where_a_character_takes_several(tiny_chat: LiveServer) -> None:
    prompt = "Héllo 😀 wörld"
    (choice,) = tiny_chat.answer(URL, prompt=prompt, max_tokens=8, logprobs=0, echo=True, ignore_eos=True)["choices"]
    told = choice["logprobs"]
    assert told["text_offset"] == sorted(told["text_offset"])
    for token, offset in zip(told["tokens"], told["text_offset"], strict=True):
        if "\ufffd" not in token and not token.startswith("<|"):
            assert choice["text"].startswith(token, offset), (token, offset)


def test_several_prompts_and_continuations_come_in_order(tiny_chat: LiveServer) -> None:
    body = {"prompt": [TEXT, "Two plus two is"], "n": 3, "max_tokens": 5, "temperature": 1, "seed": 7}
    together = tiny_chat.answer(URL, **body)
    alone = [tiny_chat.answer(URL, **{**body, "prompt": prompt}) for prompt in body["prompt"]]
    texts = [choice["text"] for answer in alone for choice in answer["choices"]]
    assert [choice["text"] for choice in together["choices"]] == texts
    assert [choice["index"] for choice in together["choices"]] == list(range(6))
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert together["usage"][name] == sum(answer["usage"][name] for answer in alone)
    streamed = added_up(events_of(tiny_chat.post(URL, **body, stream=True).text))
    assert [streamed[index]["text"] for index in range(6)] == texts


def test_lists_of_token_ids_are_prompts(tiny_chat: LiveServer) -> None:
    ids = tiny_chat.answer("/tokenize", prompt=TEXT)["tokens"]
    body = {"max_tokens": 4, "temperature": 0}
    text = tiny_chat.answer(URL, prompt=TEXT, **body)["choices"][0]["text"]
    for prompt, count in ((ids, 1), ([ids], 1), ([ids, ids], 2), ([TEXT], 1)):
        answer = tiny_chat.answer(URL, prompt=prompt, **body)
        assert [choice["text"] for choice in answer["choices"]] == [text] * count


def test_an_answer_has_every_field_of_openais(tiny_chat: LiveServer) -> None:
    answer = tiny_chat.answer(URL, prompt=TEXT, max_tokens=2)
    assert set(answer) == {"id", "object", "created", "model", "system_fingerprint", "choices", "usage"}
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["model"] == "tiny-chat"
    assert set(answer["choices"][0]) == {"index", "text", "logprobs", "finish_reason", "stop_reason"}
    assert answer["choices"][0]["logprobs"] is None
    assert tiny_chat.answer(URL, prompt=TEXT, max_tokens=2)["system_fingerprint"] == answer["system_fingerprint"]


@pytest.mark.parametrize("continuous", [False, True])
def test_usage_of_a_stream_comes_last_or_with_every_chunk(tiny_chat: LiveServer, continuous: bool) -> None:
    body = {"prompt": [TEXT, TEXT], "max_tokens": 4, "n": 2, "temperature": 1, "ignore_eos": True}
    options = {"include_usage": True, "continuous_usage_stats": continuous}
    chunks = events_of(tiny_chat.post(URL, **body, stream=True, stream_options=options).text)
    last = chunks[-1]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 16
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + 16
    counts = [chunk["usage"] and chunk["usage"]["completion_tokens"] for chunk in chunks[:-1]]
    assert counts == (sorted(counts) if continuous else [None] * len(counts))
    assert not continuous or counts[-1] == 16
    without = events_of(tiny_chat.post(URL, **body, stream=True).text)
    assert all(chunk["choices"] and "usage" not in chunk for chunk in without)


def test_cached_tokens_are_told(tiny_chat: LiveServer) -> None:
    body = {"prompt": [5, 6, 7, 8] * 40, "max_tokens": 1, "cache_salt": "a salt of this test"}
    first, second = (tiny_chat.answer(URL, **body)["usage"] for _ in range(2))
    assert first["prompt_tokens_details"]["cached_tokens"] == 0
    assert 0 < second["prompt_tokens_details"]["cached_tokens"] < second["prompt_tokens"] == 160
    other = tiny_chat.answer(URL, **{**body, "cache_salt": "another"})["usage"]
    assert other["prompt_tokens_details"]["cached_tokens"] == 0


def test_echo_without_new_tokens_is_the_prompt(tiny_chat: LiveServer) -> None:
    answer = tiny_chat.answer(URL, prompt=TEXT, max_tokens=0, echo=True, logprobs=1)
    (choice,) = answer["choices"]
    assert choice["text"] == TEXT
    assert "".join(choice["logprobs"]["tokens"]) == TEXT
    assert answer["usage"]["completion_tokens"] == 0


def test_vllms_fields_tell_token_ids_and_prompt_logprobs(tiny_chat: LiveServer, library: LLM) -> None:
    ids = tiny_chat.answer("/tokenize", prompt=TEXT)["tokens"]
    more = {"return_token_ids": True, "prompt_logprobs": 1, "logprobs": 1, "return_tokens_as_token_ids": True}
    (choice,) = tiny_chat.answer(URL, prompt=TEXT, max_tokens=3, temperature=0, **more)["choices"]
    (output,) = library.generate(TEXT, SamplingParams(max_tokens=3, temperature=0, prompt_logprobs=1))
    assert choice["prompt_token_ids"] == ids
    assert choice["token_ids"] == output.outputs[0].token_ids
    assert choice["logprobs"]["tokens"] == [f"token_id:{i}" for i in choice["token_ids"]]
    assert output.prompt_logprobs is not None
    assert choice["prompt_logprobs"][0] is None
    for told, entry in zip(choice["prompt_logprobs"][1:], output.prompt_logprobs[1:], strict=True):
        assert list(told) == [str(i) for i in entry or ()]
    assert choice["prompt_logprobs"][1][str(ids[1])]["decoded_token"] == " capital"


@pytest.mark.parametrize(("side", "kept"), [(None, [3, 4]), ("left", [3, 4]), ("right", [1, 2])])
def test_a_prompt_is_truncated_where_it_was_asked_for(tiny_chat: LiveServer, side: str | None, kept: list[int]) -> None:
    more = {"truncate_prompt_tokens": 2, "truncation_side": side, "return_token_ids": True, "echo": True}
    (choice,) = tiny_chat.answer(URL, prompt=[1, 2, 3, 4], max_tokens=1, **more)["choices"]
    assert choice["prompt_token_ids"] == kept
    assert choice["text"].startswith(tiny_chat.answer("/detokenize", tokens=kept)["prompt"])


def test_a_prompt_that_is_too_long_can_be_cut_to_what_fits(tiny_chat: LiveServer) -> None:
    body = {"prompt": [5] * 3000, "max_tokens": 8, "ignore_eos": True}
    error = tiny_chat.post(URL, **body).json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert tiny_chat.answer(URL, **body, truncate_prompt_tokens=-1)["usage"]["prompt_tokens"] == 2040


def test_defaults_are_openais_and_a_null_is_no_value(tiny_chat: LiveServer) -> None:
    nulls = dict.fromkeys(("n", "temperature", "top_p", "stop", "logit_bias", "logprobs", "echo", "suffix", "user"))
    usage = tiny_chat.answer(URL, prompt=TEXT, ignore_eos=True, **nulls, best_of=1)["usage"]
    assert usage["completion_tokens"] == 16


def test_logit_bias_and_bad_words_act_on_the_output(tiny_chat: LiveServer) -> None:
    body = {"prompt": TEXT, "max_tokens": 1, "temperature": 0}
    assert tiny_chat.answer(URL, **body)["choices"][0]["text"] == " Paris"
    (token_id,) = tiny_chat.answer("/tokenize", prompt=" Paris")["tokens"]
    assert tiny_chat.answer(URL, **body, logit_bias={str(token_id): -100})["choices"][0]["text"] != " Paris"
    body["prompt"] += " Paris"
    assert tiny_chat.answer(URL, **body)["choices"][0]["text"] == "."
    assert tiny_chat.answer(URL, **body, bad_words=["."])["choices"][0]["text"] != "."
    assert tiny_chat.answer(URL, **body, allowed_token_ids=[token_id])["choices"][0]["text"] == " Paris"


def test_structured_outputs_have_their_form(tiny_chat: LiveServer) -> None:
    body = {"prompt": "A colour: ", "max_tokens": 32}
    text = tiny_chat.answer(URL, **body, structured_outputs={"choice": ["red", "green"]})["choices"][0]["text"]
    assert text in ("red", "green")
    text = tiny_chat.answer(URL, **body, structured_outputs={"regex": "[ab]{3}"})["choices"][0]["text"]
    assert len(text) == 3
    assert set(text) <= {"a", "b"}
