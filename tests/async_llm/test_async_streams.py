"""What the streams of an AsyncLLM tell: the same as LLM, to any number of readers, however slow they are."""

import asyncio
import threading
import time
from dataclasses import replace
from pathlib import Path
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
    mock_plugins,
    predicted,
    read,
    settle,
    token_ids_of,
    until,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from nanovllm import LLM, AsyncLLM, RequestOutput, RequestOutputKind, SamplingParams
from nanovllm.checkpoint import resolve_model

CUMULATIVE = RequestOutputKind.CUMULATIVE

requests = st.lists(
    st.tuples(
        st.lists(st.integers(1, 3), min_size=1, max_size=18) | st.text(min_size=1, max_size=18),
        st.builds(
            SamplingParams,
            n=st.integers(1, 3),
            temperature=st.sampled_from([0.7, 2.0]),
            seed=st.integers(0, 3),
            max_tokens=st.integers(1, 14),
            logprobs=st.sampled_from([None, 0, 2]),
            prompt_logprobs=st.sampled_from([None, 1]),
            stop=st.sampled_from([None, ["e", "th"]]),
            output_kind=st.sampled_from(RequestOutputKind),
        ),
    ),
    min_size=1,
    max_size=6,
)


@given(requests, st.sampled_from([{}, {"max_num_batched_tokens": 4, "max_num_seqs": 4}, {"num_kv_blocks": 24}]))
@settings(max_examples=25)
def test_a_mix_of_requests_is_told_the_same_as_offline(
    asked: list[tuple[Any, SamplingParams]], options: dict[str, int]
) -> None:
    async def main() -> list[list[RequestOutput]]:
        async with async_llm(**options) as llm:
            streams = [read(llm.generate(prompt, params)) for prompt, params in asked]
            return await asyncio.gather(*streams)

    told = asyncio.run(main())
    defaults: dict[str, Any] = {"backend": "mock", "block_size": 4, "num_kv_blocks": 256, "max_model_len": 64}
    with LLM("mock", plugins=mock_plugins(), **{**defaults, **options}) as llm:
        expected = llm.generate([prompt for prompt, _ in asked], [params for _, params in asked])
    for outputs, whole, (_, params) in zip(told, expected, asked, strict=True):
        assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
        assert add_up(outputs, params.output_kind) == add_up([whole], RequestOutputKind.FINAL_ONLY)
        assert outputs[-1].prompt_logprobs == whole.prompt_logprobs
        assert (outputs[-1].prompt, outputs[-1].prompt_token_ids) == (whole.prompt, whole.prompt_token_ids)
        assert outputs[-1].metrics is not None


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.sampled_from([CUMULATIVE, DELTA]), st.integers(1, 2))
@settings(max_examples=25)
def test_what_came_while_a_reader_was_away_comes_as_one_output(
    absences: list[int], kind: RequestOutputKind, num_continuations: int
) -> None:
    """absences: steps made between two reads."""
    num_tokens = 1 + sum(absences)
    params = SamplingParams(
        n=num_continuations, seed=1, max_tokens=num_tokens, ignore_eos=True, output_kind=kind, logprobs=1
    )

    async def main() -> list[RequestOutput]:
        runner = HeldRunner()
        async with async_llm(runner) as llm:
            runner.let(1)
            stream = llm.generate([1, 2], params)
            outputs = [await anext(stream)]
            num_steps = llm.stats().num_steps
            for absence in absences:
                num_steps += absence
                runner.let(absence)
                await until(lambda: llm.stats().num_steps == num_steps)  # noqa: B023  (is awaited here)
                outputs.append(await anext(stream))
            assert [output async for output in stream] == []
            return outputs

    outputs = asyncio.run(main())
    lengths = [len(completion.token_ids) for output in outputs for completion in output.outputs]
    totals = [1 + sum(absences[:i]) for i in range(len(absences) + 1)]
    expected = [1, *absences] if kind is DELTA else totals
    assert lengths == [length for length in expected for _ in range(num_continuations)]
    with LLM("mock", backend="mock", plugins=mock_plugins()) as llm:
        assert add_up(outputs, kind) == add_up(llm.generate([1, 2], params), RequestOutputKind.FINAL_ONLY)


@pytest.mark.parametrize("kind", [CUMULATIVE, DELTA])
def test_a_loop_that_stands_still_loses_nothing(kind: RequestOutputKind) -> None:
    async def main() -> list[list[RequestOutput]]:
        async with async_llm() as llm:
            params = replace(GREEDY, output_kind=kind)
            streams = [asyncio.ensure_future(read(llm.generate([i + 1], params))) for i in range(8)]
            await asyncio.sleep(0)  # all have begun
            end_s = time.monotonic() + PATIENCE_S
            while llm.stats().num_finished_requests < len(streams) and time.monotonic() < end_s:
                time.sleep(0.001)  # on purpose not the loop's
            return await asyncio.gather(*streams)

    for i, outputs in enumerate(asyncio.run(main())):
        assert len(outputs) == 1
        assert add_up(outputs, kind)[0].token_ids == predicted([i + 1])


def test_several_loops_in_threads_use_one_model_at_once() -> None:
    llm = async_llm(max_num_seqs=8)
    told: dict[int, list[list[int]]] = {}

    async def main(number: int) -> None:
        for _ in range(3):
            streams = [token_ids_of(llm.generate([number + 1, i + 1], GREEDY)) for i in range(8)]
            told[number] = await asyncio.gather(*streams)

    threads = [threading.Thread(target=asyncio.run, args=(main(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert told == {number: [predicted([number + 1, i + 1]) for i in range(8)] for number in range(4)}
    asyncio.run(settle(llm))
    llm.close()


class CountingLoop(asyncio.SelectorEventLoop):
    """Counts how often another thread wakes it."""

    num_wake_ups = 0

    def call_soon_threadsafe(self, *arguments: Any, **options: Any) -> asyncio.Handle:
        self.num_wake_ups += 1
        return super().call_soon_threadsafe(*arguments, **options)


def test_a_loop_is_woken_once_a_step_however_many_streams_it_reads() -> None:
    async def main() -> tuple[int, int, int]:
        llm = async_llm()
        streams = [read(llm.generate([i + 1], GREEDY)) for i in range(64)]
        num_outputs = sum(len(outputs) for outputs in await asyncio.gather(*streams))
        loop = asyncio.get_running_loop()
        assert isinstance(loop, CountingLoop)
        num_wake_ups = loop.num_wake_ups
        llm.close()
        return num_outputs, num_wake_ups, llm.stats().num_steps

    with asyncio.Runner(loop_factory=CountingLoop) as runner:
        num_outputs, num_wake_ups, num_steps = runner.run(main())
    assert num_wake_ups <= num_steps < num_outputs / 4


def test_the_engine_sleeps_while_there_is_nothing_to_do() -> None:
    async def main() -> float:
        async with async_llm() as llm:
            await token_ids_of(llm.generate([1], GREEDY))
            start_s = time.process_time()
            await asyncio.sleep(0.3)
            return time.process_time() - start_s

    assert asyncio.run(main()) < 0.03


@pytest.mark.parametrize("is_chat", [False, True])
def test_while_a_long_prompt_is_tokenized_the_loop_and_the_engine_go_on(is_chat: bool) -> None:
    async def main() -> None:
        tokenizer = HeldTokenizer()
        async with async_llm(tokenizer=tokenizer) as llm:
            messages = [{"role": "user", "content": "a"}]
            template = "{{ messages[0].content }} long prompt"
            long = llm.chat(messages, GREEDY, chat_template=template) if is_chat else llm.generate("a" * 1000, GREEDY)
            task = asyncio.ensure_future(read(long))
            await asyncio.to_thread(tokenizer.begun.wait, PATIENCE_S)
            assert await token_ids_of(llm.generate([1, 2], GREEDY)) == predicted([1, 2])
            assert not task.done()
            tokenizer.may_end.set()
            outputs = await task
            assert outputs[-1].outputs[0].token_ids == predicted(outputs[-1].prompt_token_ids)

    asyncio.run(main())


def test_chat_on_the_model_in_the_box_answers_as_llm_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("NANOVLLM_CACHE", str(tmp_path))
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    params = SamplingParams(temperature=0, max_tokens=30, output_kind=DELTA)

    async def main() -> str:
        async with AsyncLLM(str(resolve_model("tiny-chat"))) as llm:
            assert llm.has_chat_template
            assert llm.max_model_len == llm.model_info.max_model_len
            assert llm.tokenizer.decode(llm.tokenizer.encode("Paris")) == "Paris"
            assert isinstance(llm.get_default_sampling_params(), SamplingParams)
            outputs = await read(llm.chat(messages, params))
            assert outputs[0].prompt == llm.render_chat(messages)
            return add_up(outputs, DELTA)[0].text

    assert asyncio.run(main()) == "The capital of France is Paris."
