"""Errors of an AsyncLLM reach the request that they concern, and nobody waits for ever."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from async_mock import GREEDY, PATIENCE_S, HeldRunner, HeldTokenizer, async_llm, predicted, read, settle, token_ids_of

from backends.mock.runner import MockRunner
from nanovllm import BackendError, BackendLostError, ConfigError, PromptError, RequestError, SamplingParams
from nanovllm.plugins import Batch, StepOutput


class PoisonedRunner(MockRunner):
    """A mock that raises in the steps that hold the token 99."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(max_model_len=64)
        self.error = error
        self.num_closed = 0

    def execute(self, batch: Batch) -> StepOutput:
        if 99 in batch.token_ids:
            raise self.error
        return super().execute(batch)

    def close(self) -> None:
        self.num_closed += 1


class PulledPlug(BaseException):
    """Nothing that an engine takes for a failure of its runner."""


def test_a_second_request_of_an_id_that_is_in_use_is_refused_and_the_first_goes_on() -> None:
    async def main() -> None:
        runner = HeldRunner()
        async with async_llm(runner) as llm:
            first = asyncio.ensure_future(token_ids_of(llm.generate([1], GREEDY, request_id="a")))
            await runner.next_step()
            second = asyncio.ensure_future(token_ids_of(llm.generate([2], GREEDY, request_id="a")))
            await asyncio.sleep(0)
            runner.let(100)
            with pytest.raises(RequestError, match="'a' is in use"):
                await second
            assert await first == predicted([1])
            assert await token_ids_of(llm.generate([3], GREEDY, request_id="a")) == predicted([3])

    asyncio.run(main())


def test_the_id_of_a_request_that_was_left_is_free_at_once() -> None:
    async def main() -> None:
        async with async_llm() as llm:
            for i in range(20):
                stream = llm.generate([i + 1], replace(GREEDY, max_tokens=40), request_id="a")
                await anext(stream)
                await stream.aclose()
            assert await token_ids_of(llm.generate([3], GREEDY, request_id="a")) == predicted([3])
            await settle(llm)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("prompt", "params", "options", "message"),
    [
        ([], GREEDY, {}, "empty"),
        ([1000], GREEDY, {}, "token id 1000"),
        ("long " * 500, GREEDY, {}, "tokens; with max_model_len"),
        ({"text": "a"}, GREEDY, {}, "key 'text'"),
        (None, GREEDY, {}, "a prompt is None"),
        ("a", {"temperature": 0}, {}, "sampling_params is"),
        ("a", GREEDY, {"request_id": ["a"]}, "request_id is"),
        ("a", GREEDY, {"priority": "high"}, "priority is 'high'"),
        ("a", GREEDY, {"priority": 1}, "priority is 1"),
        ("a", replace(GREEDY, allowed_token_ids=[5000]), {}, "allowed_token_ids"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_where_it_is_read(
    prompt: Any, params: Any, options: dict[str, Any], message: str
) -> None:
    async def main() -> None:
        async with async_llm() as llm:
            other = asyncio.ensure_future(token_ids_of(llm.generate([1], GREEDY)))
            stream = llm.generate(prompt, params, **options)
            with pytest.raises(RequestError, match=message):
                await anext(stream)
            assert await other == predicted([1])
            assert llm.stats().num_finished_requests == 1

    asyncio.run(main())


def test_an_abort_of_what_is_no_id_is_refused_and_harms_nothing() -> None:
    async def main() -> None:
        async with async_llm() as llm:
            with pytest.raises(RequestError, match="request_id"):
                await llm.abort(["a"])
            assert await token_ids_of(llm.generate([1], GREEDY)) == predicted([1])

    asyncio.run(main())


def test_a_conversation_without_a_template_and_an_unknown_option_are_refused() -> None:
    async def main() -> None:
        async with async_llm() as llm:
            assert not llm.has_chat_template
            with pytest.raises(RequestError, match="no chat template"):
                await anext(llm.chat([{"role": "user", "content": "Hello"}]))

    asyncio.run(main())
    with pytest.raises(ConfigError, match="max_num_seq"):
        async_llm(max_num_seq=3)


@pytest.mark.parametrize("error", [ZeroDivisionError("one / zero"), BackendError("the device is gone")])
def test_a_failing_step_ends_the_request_that_it_fails_on_and_no_other(error: Exception) -> None:
    async def main() -> None:
        async with async_llm(PoisonedRunner(error)) as llm:
            prompts = [[i + 1] for i in range(8)]
            good = [token_ids_of(llm.generate(prompt, GREEDY)) for prompt in prompts]
            bad = [token_ids_of(llm.generate([1, 99], GREEDY)) for _ in range(2)]
            results = await asyncio.gather(*good, *bad, return_exceptions=True)
            assert results[:8] == [predicted(prompt) for prompt in prompts]
            assert all(isinstance(result, BackendError) and str(error) in str(result) for result in results[8:])
            assert llm.is_running
            assert not llm.errored
            assert await token_ids_of(llm.generate([5], GREEDY)) == predicted([5])
            await settle(llm)

    asyncio.run(main())


class PoisonedLaterRunner(HeldRunner):
    """Fails at its fourth step."""

    num_steps = 0

    def execute(self, batch: Batch) -> StepOutput:
        output = super().execute(batch)
        self.num_steps += 1
        if self.num_steps >= 4:
            raise ZeroDivisionError("one / zero")
        return output


def test_a_late_reader_gets_what_was_said_before_the_error_and_then_the_error() -> None:
    async def main() -> None:
        runner = PoisonedLaterRunner()
        async with async_llm(runner) as llm:
            stream = llm.generate([1, 2], GREEDY)
            runner.let(1)
            await anext(stream)
            runner.let(100)
            await settle(llm)
            assert (await anext(stream)).outputs[0].token_ids == predicted([1, 2], 3)
            with pytest.raises(BackendError, match="one / zero"):
                await anext(stream)

    asyncio.run(main())


@pytest.mark.parametrize(
    "error", [PulledPlug("gone"), BackendLostError("gone")], ids=lambda error: type(error).__name__
)
def test_an_engine_that_dies_tells_everybody_and_refuses_what_comes_later(error: BaseException) -> None:
    async def main() -> None:
        runner = PoisonedRunner(error)
        llm = async_llm(runner, max_num_seqs=4)
        long = replace(GREEDY, max_tokens=60)
        streams = [read(llm.generate([i + 1], long)) for i in range(6)]
        fatal = read(llm.generate([1, 99], GREEDY))
        results = await asyncio.gather(*streams, fatal, return_exceptions=True)
        assert all(
            isinstance(result, BackendError) and f"{type(error).__name__}: gone" in str(result) for result in results
        )
        assert all(isinstance(result, BackendError) and result.__cause__ is runner.error for result in results)
        assert len({id(result) for result in results}) == len(results)
        assert llm.errored
        assert not llm.is_running
        for prompt in ([1], "a" * 1000):
            with pytest.raises(BackendError, match="the engine has stopped"):
                await anext(llm.generate(prompt, GREEDY))
        await llm.aclose()
        assert runner.num_closed == 1

    asyncio.run(main())


def test_closing_ends_what_runs_and_what_waits_with_an_error() -> None:
    async def main() -> None:
        runner = HeldRunner()
        llm = async_llm(runner, max_num_seqs=2)
        streams = [asyncio.ensure_future(read(llm.generate([i + 1], GREEDY))) for i in range(6)]
        half_read = llm.generate([7], GREEDY)
        first = asyncio.ensure_future(anext(half_read))
        await runner.next_step()
        closing = asyncio.ensure_future(llm.aclose())
        await asyncio.sleep(0.01)
        assert not closing.done()  # a step is under way
        late = asyncio.ensure_future(read(llm.generate([8], GREEDY)))
        await asyncio.sleep(0)
        runner.let(100)
        results = await asyncio.gather(*streams, first, late, return_exceptions=True)
        assert all(isinstance(result, BackendError) and "was closed" in str(result) for result in results)
        await closing
        await llm.aclose()
        llm.close()
        assert runner.num_closed == 1
        assert not llm.is_running
        assert not llm.errored
        for prompt in ([1], "a" * 1000):
            with pytest.raises(BackendError, match="was closed"):
                await anext(llm.generate(prompt, GREEDY))
        stats = llm.stats()
        assert (stats.num_running, stats.num_waiting, stats.num_free_kv_blocks) == (0, 0, stats.num_kv_blocks)

    asyncio.run(main())


def test_a_prompt_that_is_tokenized_while_the_model_is_closed_is_not_waited_for() -> None:
    async def main() -> None:
        tokenizer = HeldTokenizer()
        llm = async_llm(tokenizer=tokenizer)
        task = asyncio.ensure_future(read(llm.generate("a" * 1000, GREEDY)))
        await asyncio.to_thread(tokenizer.begun.wait, PATIENCE_S)
        llm.close()
        tokenizer.may_end.set()
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(BackendError, match="was closed"):
                await task

    asyncio.run(main())


def test_closing_while_requests_begin_leaves_none_of_them_waiting() -> None:
    async def main() -> None:
        for _ in range(30):
            llm = async_llm()
            prompts: list[Any] = [[1, 2], "a" * 300, [3]] * 5
            streams = [asyncio.ensure_future(read(llm.generate(prompt, SamplingParams()))) for prompt in prompts]
            closing = asyncio.ensure_future(llm.aclose())
            async with asyncio.timeout(20):
                results = await asyncio.gather(*streams, return_exceptions=True)
                await closing
            errors = [result for result in results if isinstance(result, Exception)]
            assert all(isinstance(error, BackendError | PromptError) for error in errors)

    asyncio.run(main())
