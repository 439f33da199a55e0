"""/v1/chat/completions gives what the library gives, in OpenAI's form."""

import json
from typing import Any

import pytest
from event_stream import chat_added_up, events_of
from hypothesis import given, settings
from hypothesis import strategies as st
from live_server import LiveServer, live_server
from mock_llms import mock_llm

from nanovllm import LLM, SamplingParams

URL = "/v1/chat/completions"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}},
    "required": ["city"],
    "additionalProperties": False,
}

conversations = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant"]), "content": st.text(st.characters(codec="utf-8"))}
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=30)
@given(
    messages=st.one_of(st.just(QUESTION), conversations),
    seed=st.integers(0, 2**32),
    temperature=st.sampled_from([0, 1]),
    num_top=st.none() | st.integers(0, 3),
    stop=st.sampled_from([None, ".", [" of", "e"]]),
)
def test_streamed_unstreamed_and_library_give_the_same_answer(
    tiny_chat: LiveServer,
    library: LLM,
    messages: list[dict[str, str]],
    seed: int,
    temperature: int,
    num_top: int | None,
    stop: Any,
) -> None:
    asked = {"seed": seed, "temperature": temperature, "stop": stop}
    body = {"messages": messages, "max_completion_tokens": 16, **asked}
    if num_top is not None:
        body |= {"logprobs": True, "top_logprobs": num_top}
    (whole,) = tiny_chat.answer(URL, **body)["choices"]
    streamed = chat_added_up(events_of(tiny_chat.post(URL, **body, stream=True).text))[0]
    (output,) = library.chat(messages, SamplingParams(max_tokens=16, **asked))
    expected = output.outputs[0]
    assert whole["message"]["content"] == streamed["content"] == expected.text
    assert whole["finish_reason"] == streamed["finish_reason"] == expected.finish_reason
    assert streamed["logprobs"] == (whole["logprobs"] or {"content": []})["content"]
    for entry in streamed["logprobs"]:
        ranked = [top["logprob"] for top in entry["top_logprobs"]]
        assert ranked == sorted(ranked, reverse=True)
        assert len(ranked) == num_top
    assert len(streamed["logprobs"]) == (0 if num_top is None else len(expected.token_ids))


def test_bytes_of_the_tokens_are_the_bytes_of_the_text(tiny_chat: LiveServer) -> None:
    body = {"messages": QUESTION, "seed": 5, "temperature": 2, "ignore_eos": True, "max_tokens": 48, "logprobs": True}
    (choice,) = tiny_chat.answer(URL, **body, skip_special_tokens=False)["choices"]
    data = bytes(byte for entry in choice["logprobs"]["content"] for byte in entry["bytes"])
    assert data.decode("utf-8", "replace") == choice["message"]["content"]


def test_an_answer_has_every_field_of_openais(tiny_chat: LiveServer) -> None:
    answer = tiny_chat.answer(URL, messages=QUESTION, temperature=0)
    assert set(answer) == {"id", "object", "created", "model", "system_fingerprint", "choices", "usage"}
    assert answer["id"].startswith("chatcmpl-")
    (choice,) = answer["choices"]
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": "The capital of France is Paris.", "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
        "stop_reason": None,
    }


def test_a_stream_begins_with_the_role_and_ends_with_a_reason(tiny_chat: LiveServer) -> None:
    response = tiny_chat.post(URL, messages=QUESTION, temperature=0, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    chunks = events_of(response.text)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert chunks[-1]["choices"][0]["delta"] == {}
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk["id"], chunk["created"], chunk["system_fingerprint"]) for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in chunks)


@pytest.mark.parametrize("continuous", [False, True])
def test_usage_of_a_stream_is_that_of_the_whole_answer(tiny_chat: LiveServer, continuous: bool) -> None:
    body = {"messages": QUESTION, "temperature": 1, "seed": 2, "n": 3, "max_tokens": 9}
    whole = tiny_chat.answer(URL, **body)
    options = {"include_usage": True, "continuous_usage_stats": continuous}
    chunks = events_of(tiny_chat.post(URL, **body, stream=True, stream_options=options).text)
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert chunks[-1]["usage"][name] == whole["usage"][name]
    assert chunks[-1]["choices"] == []
    assert all((chunk["usage"] is not None) == continuous for chunk in chunks[:-1])
    streamed = chat_added_up(chunks)
    assert [streamed[i]["content"] for i in range(3)] == [c["message"]["content"] for c in whole["choices"]]
    roles = [chunk["choices"][0]["delta"].get("role") for chunk in chunks[:3]]
    assert roles == ["assistant"] * 3


def test_text_parts_and_the_developer_role_are_understood(tiny_chat: LiveServer) -> None:
    plain = [{"role": "system", "content": "Be brief.\nBe kind."}, *QUESTION]
    parts = [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind."}]
    same = [{"role": "developer", "content": parts}, *QUESTION]
    tokens = [tiny_chat.answer("/tokenize", messages=messages)["tokens"] for messages in (plain, same)]
    assert tokens[0] == tokens[1]
    answer = tiny_chat.answer(URL, messages=same, return_token_ids=True, max_tokens=2)
    assert answer["prompt_token_ids"] == tokens[0]
    assert len(answer["choices"][0]["token_ids"]) == 2


def test_what_the_context_leaves_is_the_default_length(tiny_chat: LiveServer) -> None:
    long = [{"role": "user", "content": "Paris " * 1000}]
    usage = tiny_chat.answer(URL, messages=long, temperature=0, ignore_eos=True)["usage"]
    assert usage["total_tokens"] == 2048
    body = {"messages": QUESTION, "max_tokens": 9, "max_completion_tokens": 3, "ignore_eos": True}
    assert tiny_chat.answer(URL, **body)["usage"]["completion_tokens"] == 3


def test_the_last_message_is_continued_where_it_was_asked_for(tiny_chat: LiveServer) -> None:
    messages = [*QUESTION, {"role": "assistant", "content": "The capital of "}]
    answer = tiny_chat.answer(URL, messages=messages, continue_final_message=True, temperature=0, return_token_ids=True)
    prompt = tiny_chat.answer("/detokenize", tokens=answer["prompt_token_ids"])["prompt"]
    assert prompt.endswith("<|im_start|>assistant\nThe capital of ")
    without = tiny_chat.answer("/tokenize", messages=QUESTION, add_generation_prompt=False)["tokens"]
    assert not tiny_chat.answer("/detokenize", tokens=without)["prompt"].endswith("assistant\n")


@pytest.mark.parametrize(
    ("form", "holds"),
    [
        ({"type": "json_object"}, lambda value: isinstance(value, dict)),
        (
            {"type": "json_schema", "json_schema": {"name": "c", "schema": CITY, "strict": True}},
            lambda v: set(v) == {"city"},
        ),
        ({"type": "json_schema", "json_schema": {"name": "c", "schema": CITY}}, lambda value: len(value["city"]) <= 8),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_response_format_holds(tiny_chat: LiveServer, form: Any, holds: Any, stream: bool) -> None:
    body = {"messages": QUESTION, "temperature": 1, "seed": 3, "max_tokens": 256, "response_format": form}
    if form["type"] == "json_object":
        bias = {str(i): 100 for i in tiny_chat.answer("/tokenize", prompt="}")["tokens"]}
        body["logit_bias"] = bias
    response = tiny_chat.post(URL, **body, stream=stream)
    if stream:
        text = chat_added_up(events_of(response.text))[0]["content"]
    else:
        text = response.json()["choices"][0]["message"]["content"]
    assert holds(json.loads(text)), text


def test_response_format_text_asks_for_nothing(tiny_chat: LiveServer) -> None:
    answer = tiny_chat.answer(URL, messages=QUESTION, temperature=0, response_format={"type": "text"})
    assert answer["choices"][0]["message"]["content"] == "The capital of France is Paris."


def test_template_variables_reach_the_template() -> None:

    template = "{{ mood }}/{{ documents }}/{{ reasoning_effort }}/{{ tools }}:{{ messages[0].content }}"
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    body = {
        "messages": [{"role": "user", "content": "hi"}],
        "chat_template_kwargs": {"mood": "calm"},
        "documents": [{"text": "d"}],
        "reasoning_effort": "low",
        "max_tokens": 1,
        "return_token_ids": True,
    }
    llm = mock_llm()
    with live_server(llm, chat_template=template) as server:
        ids = server.answer(URL, **body)["prompt_token_ids"]
        assert server.answer("/detokenize", tokens=ids)["prompt"] == "calm/[{'text': 'd'}]/low/None:hi"
        ids = server.answer(URL, **body, tools=[tool], tool_choice="none")["prompt_token_ids"]
        assert "/None:" in server.answer("/detokenize", tokens=ids)["prompt"]
    llm.close()


def test_earlier_tool_calls_reach_the_template_as_objects() -> None:

    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "user", "content": "add"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "2"},
    ]
    template = (
        "{{ messages[1].tool_calls[0].function.arguments.a + 1 }}{{ messages[1].content }}{{ messages[2].content }}"
    )
    llm = mock_llm()
    with live_server(llm, chat_template=template) as server:
        answer = server.answer(URL, messages=messages, max_tokens=1, return_token_ids=True)
        assert server.answer("/detokenize", tokens=answer["prompt_token_ids"])["prompt"] == "22"
    llm.close()
