"""Parts of the server by themselves, and the OpenAPI document that it shows."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_server import LiveServer

from backends.mock.simple_bpe import SimpleBPE
from nanovllm.outputs import Logprob
from nanovllm.server.logprobs import LogprobFormat, TextOffsets
from nanovllm.server.merge import merge
from nanovllm.server.refused_fields import UnknownFields, check_refused

tokenizer = SimpleBPE()


@given(lengths=st.lists(st.integers(0, 5), max_size=6), taken=st.integers(0, 30))
def test_merged_streams_keep_each_ones_order_and_all_are_closed(lengths: list[int], taken: int) -> None:
    closed: list[int] = []

    async def stream(number: int, length: int) -> AsyncGenerator[int, None]:
        try:
            for item in range(length):
                await asyncio.sleep(0)
                yield item
        finally:
            closed.append(number)

    async def main() -> list[tuple[int, int]]:
        got: list[tuple[int, int]] = []
        streams = [stream(number, length) for number, length in enumerate(lengths)]
        async with aclosing(merge(streams)) as merged:
            async for pair in merged:
                got.append(pair)
                if len(got) == taken:
                    break
        assert len(asyncio.all_tasks()) == 1
        return got

    got = asyncio.run(main())
    for number, length in enumerate(lengths):
        items = [item for which, item in got if which == number]
        assert items == list(range(len(items)))
        assert len(items) <= length
    assert len(got) == (min(taken, sum(lengths)) if taken else sum(lengths))
    begun = {number for number, _ in got}
    assert begun <= set(closed)


@pytest.mark.parametrize("num_streams", [1, 3])
def test_a_stream_that_fails_closes_the_others_and_is_heard(num_streams: int) -> None:
    closed: list[int] = []

    async def stream(number: int) -> AsyncGenerator[int, None]:
        try:
            yield number
            if number == 0:
                raise ValueError("a stream failed")
            await asyncio.Event().wait()
        finally:
            closed.append(number)

    async def main() -> None:
        with pytest.raises(ValueError, match="a stream failed"):
            async for _ in merge([stream(number) for number in range(num_streams)]):
                pass

    asyncio.run(main())
    assert sorted(closed) == list(range(num_streams))


@given(text=st.text(st.characters(codec="utf-8"), max_size=30), hidden=st.sampled_from([frozenset(), frozenset({0})]))
def test_offsets_of_tokens_grow_from_the_start_to_the_end_of_the_text(text: str, hidden: frozenset[int]) -> None:
    ids = [0, *tokenizer.encode(text), 0]
    offsets = TextOffsets(tokenizer, hidden, start=3)
    found = [offsets.next(i, tokenizer.decode([i])) for i in ids]
    assert found == sorted(found)
    assert found[0] == 3
    assert found[-1] == 3 + len(text)
    pieces = tokenizer.token_bytes()
    for i, offset in zip(ids, found, strict=True):
        whole = pieces[i].decode("utf-8", "ignore")
        if whole.encode() == pieces[i]:
            assert text.startswith(whole, offset - 3)


def test_no_logprob_leaves_the_range_of_json_and_the_likeliest_come_first() -> None:
    entry = {
        5: Logprob(float("-inf"), 9, "e"),
        6: Logprob(-0.5, 1, "f"),
        7: Logprob(-1.5, 2, "g"),
    }
    told = LogprobFormat(tokenizer).chat([entry], 2).content[0]
    assert (told.token, told.logprob) == ("e", -9999.0)
    assert [top.token for top in told.top_logprobs] == ["f", "g"]
    assert LogprobFormat(tokenizer, as_token_ids=True).chat([entry], 1).content[0].top_logprobs[0].token == "token_id:6"


@given(st.dictionaries(st.sampled_from(["guided_json", "best_of", "suffix", "store", "zzz"]), st.none(), max_size=5))
def test_a_null_asks_for_nothing(sent: dict[str, Any]) -> None:
    check_refused(sent, is_chat=True)
    check_refused(sent, is_chat=False)


def test_the_memory_for_unknown_fields_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    fields = UnknownFields(limit=3)
    for number in range(10):
        fields.warn({f"field_{number}": 1})
    assert len(caplog.records) == 3


def test_the_openapi_document_shows_every_route_and_its_errors(tiny_chat: LiveServer) -> None:
    document = tiny_chat.client.get("/openapi.json").json()
    posts = {path for path, methods in document["paths"].items() if "post" in methods}
    assert posts == {
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/inference",
        "/v1/tokenize",
        "/v1/detokenize",
        "/tokenize",
        "/detokenize",
    }
    for path in posts:
        responses = document["paths"][path]["post"]["responses"]
        assert set(responses) == {"200", "4XX", "5XX"}, path
        assert responses["4XX"]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorResponse")
    for path in ("/v1/completions", "/v1/chat/completions"):
        assert set(document["paths"][path]["post"]["responses"]["200"]["content"]) == {
            "application/json",
            "text/event-stream",
        }
    assert set(document["components"]["schemas"]["ErrorDetail"]["required"]) == {"message", "type", "param", "code"}
    assert "HTTPValidationError" not in document["components"]["schemas"]
