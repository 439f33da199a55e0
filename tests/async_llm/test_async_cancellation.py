"""Whoever stops reading an AsyncLLM, in whatever way, leaves nothing behind: no block, task, thread or stream."""

import asyncio
import gc
import random
import threading
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import pytest
from async_mock import (
    DELTA,
    GREEDY,
    PATIENCE_S,
    HeldRunner,
    HeldTokenizer,
    add_up,
    async_llm,
    predicted,
    read,
    requests_in_memory,
    settle,
    token_ids_of,
    until,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from nanovllm import AsyncLLM, FinishReason, RequestOutput, RequestOutputKind, SamplingParams

LONG = replace(GREEDY, max_tokens=40)
WAYS = ("read all", "cancel", "break", "close", "drop", "abort", "never begin")


async def leave(llm: AsyncLLM, way: str, prompt: Any, params: SamplingParams, num_reads: int, num_turns: int) -> None:
    """Starts a request and leaves it in some way, after some reads or turns of the loop."""
    request_id = f"{way} {id(prompt)}"
    stream = llm.generate(prompt, params, request_id=request_id)
    if way == "never begin":
        return
    if way == "cancel":
        task = asyncio.ensure_future(read(stream))
        for _ in range(num_turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return
    outputs = []
    async for output in stream:
        outputs.append(output)
        num_reads -= 1
        if num_reads <= 0 and way == "abort":
            await llm.abort(request_id)
        elif num_reads <= 0 and way != "read all":
            break
    else:
        assert outputs[-1].finished
        if way == "read all":
            assert outputs[-1].outputs[0].token_ids == predicted(outputs[-1].prompt_token_ids, 40)
    if way == "close":
        await stream.aclose()


@pytest.mark.parametrize("options", [{}, {"num_kv_blocks": 32}], ids=["roomy", "preempting"])
def test_300_requests_left_at_random_points_leave_nothing_behind(options: dict[str, int]) -> None:
    randomness = random.Random(0)

    async def main() -> None:
        others = set(threading.enumerate())  # among them may be another test's engine
        llm = async_llm(max_num_seqs=32, max_num_batched_tokens=64, **options)
        await token_ids_of(llm.generate([1], GREEDY))
        before = requests_in_memory()
        waves = []
        for i in range(300):
            prompt: Any = [randomness.randrange(1, 4) for _ in range(randomness.randrange(1, 20))]
            if i % 5 == 0:
                prompt = "ab" * 10 + "!" * 300  # tokenized in another thread, and too long: that ends it, too
            arguments = randomness.choice(WAYS), prompt, LONG, randomness.randrange(1, 30), randomness.randrange(80)
            waves.append(asyncio.ensure_future(leave(llm, *arguments)))
            if randomness.random() < 0.3:
                await asyncio.sleep(randomness.random() * 0.005)
        results = await asyncio.gather(*waves, return_exceptions=True)
        del waves
        unexpected = [result for result in results if result is not None and "tokens; with max" not in str(result)]
        assert not unexpected
        del results
        await settle(llm)
        await until(lambda: len(asyncio.all_tasks()) == 1)
        assert requests_in_memory() == before
        assert await token_ids_of(llm.generate([7], GREEDY)) == predicted([7])
        num_threads = threading.active_count()
        llm.close()
        assert threading.active_count() < num_threads
        assert not [thread for thread in set(threading.enumerate()) - others if thread.name == "nanovllm-engine"]

    asyncio.run(main())


actions = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), st.lists(st.integers(1, 3), min_size=1, max_size=12)),
        st.tuples(st.sampled_from(["read", "close", "drop", "abort"]), st.integers(0, 7)),
    ),
    max_size=30,
)


@given(actions, st.sampled_from([{}, {"num_kv_blocks": 16, "max_num_seqs": 3}]))
@settings(max_examples=25)
def test_whatever_the_order_of_beginning_reading_and_leaving_nothing_is_lost_or_left(
    schedule: list[tuple[str, Any]], options: dict[str, int]
) -> None:
    """Each open stream goes by its number; a stream that is there no more is left alone."""
    params = replace(GREEDY, output_kind=DELTA)

    async def main() -> None:
        async with async_llm(**options) as llm:
            streams: dict[int, tuple[list[int], AsyncGenerator[RequestOutput, None]]] = {}
            told: dict[int, list[RequestOutput]] = {}
            for action, argument in schedule:
                if action == "begin":
                    number = len(told)
                    streams[number] = argument, llm.generate(argument, params, request_id=str(number))
                    told[number] = []
                elif argument in streams:
                    prompt, stream = streams[argument]
                    if action == "read":
                        told[argument] += [await output async for output in _one(stream)]
                    elif action == "abort":
                        await llm.abort(str(argument))
                    else:
                        del streams[argument]
                        if action == "close":
                            await stream.aclose()
                        del stream
            for number, (prompt, stream) in streams.items():
                told[number] += [output async for output in stream]
                one = add_up(told[number], DELTA).get(0)
                if one is not None and one.end[0] is not FinishReason.ABORT:
                    assert one.token_ids == predicted(prompt)
                assert one is None or one.token_ids == predicted(prompt)[: len(one.token_ids)]
            streams.clear()
            await settle(llm)

    asyncio.run(main())


async def _one(stream: AsyncGenerator[RequestOutput, None]) -> AsyncGenerator[Any, None]:
    """The next output of a stream, if there is one."""
    try:
        output = await anext(stream)
    except StopAsyncIteration:
        return

    async def same() -> RequestOutput:
        return output

    yield same()


def test_a_request_that_is_left_in_a_step_has_no_blocks_in_the_next() -> None:
    async def main() -> None:
        runner = HeldRunner()
        llm = async_llm(runner)
        stay, go = (asyncio.ensure_future(read(llm.generate([i] * 8, GREEDY))) for i in (1, 2))
        runner.let(1)
        await runner.next_step()
        await runner.next_step()  # whichever has begun by then; the other joins the next step
        runner.let(1)
        assert len(await runner.next_step()) == 2
        go.cancel()
        await asyncio.gather(go, return_exceptions=True)  # while the step is under way
        runner.let(1)
        assert len(await runner.next_step()) == 1
        stats = llm.stats()
        assert (stats.num_running, stats.num_kv_blocks - stats.num_free_kv_blocks) == (1, 3)
        runner.let(100)
        assert (await stay)[-1].outputs[0].token_ids == predicted([1] * 8)
        llm.close()

    asyncio.run(main())


@pytest.mark.parametrize("kind", RequestOutputKind)
def test_aborting_by_id_tells_the_reader_and_keeps_what_was_said(kind: RequestOutputKind) -> None:
    async def main() -> None:
        runner = HeldRunner()
        async with async_llm(runner, max_num_seqs=2) as llm:
            params = SamplingParams(n=2, seed=1, max_tokens=12, ignore_eos=True, output_kind=kind)
            running = asyncio.ensure_future(read(llm.generate([1, 2], params, request_id="running")))
            await runner.next_step()
            waiting = asyncio.ensure_future(read(llm.generate([3], params, request_id="waiting")))
            await asyncio.sleep(0)
            runner.let(3)
            for _ in range(3):
                await runner.next_step()
            for request_id in ("running", "waiting", "unknown"):
                await llm.abort(request_id)
            runner.let(100)
            told = add_up(await running, kind)
            assert [one.end for one in told.values()] == [(FinishReason.ABORT, None)] * 2
            assert [len(one.token_ids) for one in told.values()] == [4, 4]
            told = add_up(await waiting, kind)
            assert [(one.token_ids, one.end[0]) for one in told.values()] == [([], FinishReason.ABORT)] * 2
            await settle(llm)

    asyncio.run(main())


def test_an_iterator_that_is_dropped_before_it_was_asked_for_anything_starts_nothing() -> None:
    async def main() -> None:
        async with async_llm() as llm:
            before = requests_in_memory()
            stream = llm.generate([1, 2], GREEDY)
            await asyncio.sleep(0.01)
            del stream
            gc.collect()
            await asyncio.sleep(0.01)
            assert requests_in_memory() == before
            assert llm.stats().num_steps == 0

    asyncio.run(main())


def test_an_iterator_that_is_dropped_half_read_ends_its_request() -> None:
    async def main() -> None:
        runner = HeldRunner()
        async with async_llm(runner) as llm:
            before = requests_in_memory()
            stream = llm.generate([1, 2], GREEDY)
            runner.let(1)
            await anext(stream)
            await runner.next_step()
            await runner.next_step()
            del stream
            gc.collect()
            await asyncio.sleep(0.01)
            runner.let(1)
            await settle(llm)
            assert llm.stats().num_steps == 2
            assert requests_in_memory() == before

    asyncio.run(main())


def test_a_request_that_is_cancelled_while_its_prompt_is_tokenized_never_begins() -> None:
    async def main() -> None:
        tokenizer = HeldTokenizer()
        async with async_llm(tokenizer=tokenizer) as llm:
            task = asyncio.ensure_future(read(llm.generate("a" * 1000, GREEDY)))
            await asyncio.to_thread(tokenizer.begun.wait, PATIENCE_S)
            task.cancel()
            tokenizer.may_end.set()
            await asyncio.gather(task, return_exceptions=True)
            assert await token_ids_of(llm.generate([1], GREEDY)) == predicted([1])
            assert llm.stats().num_finished_requests == 1
            await settle(llm)

    asyncio.run(main())


def test_a_request_whose_loop_was_closed_ends() -> None:
    runner = HeldRunner()
    llm = async_llm(runner)
    stream = llm.generate([1, 2], LONG)
    runner.let(1)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(anext(stream))
    loop.close()
    runner.let(5)
    asyncio.run(settle(llm))
    assert llm.stats().num_steps <= 6
    llm.close()


def test_dropping_the_model_ends_its_thread_and_closes_the_runner() -> None:
    runner = HeldRunner()
    llm = async_llm(runner)
    num_threads = threading.active_count()
    del llm
    gc.collect()
    assert threading.active_count() == num_threads - 1
    assert runner.num_closed == 1
