"""The tokenizer's routes, the models and the step protocol."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live_server import LiveServer, live_server
from mock_llms import is_idle, mock_llm, predicted, until

from nanovllm import LLM, SamplingParams

texts = st.text(st.characters(codec="utf-8"), max_size=40)


@pytest.fixture(scope="module")
def mock() -> Iterator[LiveServer]:
    llm = mock_llm()
    with live_server(llm, served_model_names=("first", "org/second")) as server:
        yield server
    llm.close()


@settings(max_examples=40)
@given(text=texts)
def test_every_text_survives_its_tokens(tiny_chat: LiveServer, library: LLM, text: str) -> None:
    told = tiny_chat.answer("/tokenize", prompt=text, return_token_strs=True)
    assert told["tokens"] == library.tokenizer.encode(text)
    assert told["count"] == len(told["tokens"]) == len(told["token_strs"])
    assert told["max_model_len"] == 2048
    assert tiny_chat.answer("/detokenize", tokens=told["tokens"]) == {"prompt": text}
    assert tiny_chat.answer("/v1/tokenize", text=text) == {"token_ids": told["tokens"]}
    assert tiny_chat.answer("/v1/detokenize", token_ids=told["tokens"], skip_special_tokens=False) == {"text": text}


def test_messages_are_tokenized_in_the_form_of_the_template(tiny_chat: LiveServer) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    tokens = tiny_chat.answer("/tokenize", messages=messages)["tokens"]
    prompt = tiny_chat.answer("/detokenize", tokens=tokens)["prompt"]
    assert prompt == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tiny_chat.answer("/v1/chat/completions", messages=messages, max_tokens=1)["usage"]["prompt_tokens"] == len(
        tokens
    )


def test_special_tokens_are_left_out_of_a_text_where_that_was_asked_for(tiny_chat: LiveServer) -> None:
    tokens = tiny_chat.answer("/tokenize", prompt="<|im_start|>Hi")["tokens"]
    assert tiny_chat.answer("/v1/detokenize", token_ids=tokens) == {"text": "Hi"}
    assert tiny_chat.answer("/detokenize", tokens=tokens) == {"prompt": "<|im_start|>Hi"}
    for url, name in (("/detokenize", "tokens"), ("/v1/detokenize", "token_ids")):
        response = tiny_chat.post(url, **{name: [2048]})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == name


def test_a_client_learns_the_special_tokens(tiny_chat: LiveServer) -> None:
    info = tiny_chat.client.get("/tokenizer_info").json()
    assert (info["bos_token"], info["eos_token"], info["pad_token"]) == ("<|endoftext|>", "<|im_end|>", "<|endoftext|>")
    assert (info["vocab_size"], info["model_max_length"]) == (2048, 2048)


def test_the_model_is_listed_under_each_of_its_names(mock: LiveServer) -> None:
    models = mock.client.get("/v1/models").json()["data"]
    assert [model["id"] for model in models] == ["first", "org/second"]
    for model in models:
        assert (model["object"], model["root"], model["max_model_len"]) == ("model", "mock", 256)
        assert mock.client.get(f"/v1/models/{model['id']}").json() == model
    body = {"prompt": [1], "max_tokens": 1}
    assert mock.answer("/v1/completions", **body)["model"] == "first"
    assert mock.answer("/v1/completions", **body, model="org/second")["model"] == "org/second"


@settings(max_examples=10)
@given(
    prompts=st.lists(st.lists(st.integers(1, 2044), min_size=1, max_size=12), min_size=1, max_size=4),
    seed=st.integers(0, 2**63 - 1),
    temperature=st.sampled_from([0, 1]),
    repetition_penalty=st.sampled_from([1.0, 1.5]),
)
def test_step_by_step_is_what_the_library_generates(
    tiny_chat: LiveServer,
    library: LLM,
    prompts: list[list[int]],
    seed: int,
    temperature: int,
    repetition_penalty: float,
) -> None:
    options = {"seed": seed, "temperature": temperature, "top_p": 0.9, "repetition_penalty": repetition_penalty}
    sequences = [list(prompt) for prompt in prompts]
    for step in range(8):
        asked = [{"token_ids": sequence, **options} for sequence in sequences]
        told = tiny_chat.answer("/v1/inference", sequences=asked, is_prefill=step == 0)
        for sequence, token_id in zip(sequences, told["token_ids"], strict=True):
            sequence.append(token_id)
    outputs = library.generate(prompts, SamplingParams(max_tokens=8, ignore_eos=True, **options))
    expected = [prompt + output.outputs[0].token_ids for prompt, output in zip(prompts, outputs, strict=True)]
    assert sequences == expected


def test_a_step_finds_the_earlier_ones_in_the_prefix_cache(mock: LiveServer) -> None:
    prompt = [7] * 200
    for expected in predicted(prompt, 3):
        before = mock.llm.stats()
        told = mock.answer("/v1/inference", sequences=[{"token_ids": prompt, "temperature": 0}])
        assert told == {"token_ids": [expected]}
        until(lambda: is_idle(mock.llm))
        computed = mock.llm.stats().prefill_tokens + mock.llm.stats().decode_tokens
        assert len(prompt) == 200 or computed - before.prefill_tokens - before.decode_tokens <= 8
        prompt = [*prompt, expected]


def test_sequences_of_a_step_are_computed_together(mock: LiveServer) -> None:
    before = mock.llm.stats().num_steps
    sequences = [{"token_ids": [i, i + 1], "temperature": 0} for i in range(1, 17)]
    told = mock.answer("/v1/inference", sequences=sequences)["token_ids"]
    assert told == [predicted([i, i + 1], 1)[0] for i in range(1, 17)]
    assert mock.llm.stats().num_steps - before < 16
