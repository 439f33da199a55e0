"""What happens while two steps are in flight: the order of things, and what ends, fails or is taken back meanwhile."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from backends.mock.late_runner import LateMockRunner
from backends.mock.runner import MockRunner, next_token
from nanovllm import (
    LLM,
    AsyncLLM,
    BackendError,
    ConfigError,
    FinishReason,
    RequestOutputKind,
    SamplingParams,
    StructuredOutputsParams,
)
from nanovllm.batch import LAST_SAMPLED, Batch, StepOutput
from nanovllm.engine.engine import LLMEngine
from nanovllm.plugins import PendingStep, last_sampled_rows
from nanovllm.plugins.manager import PluginManager
from nanovllm.testing import make_engine, run_requests

VOCAB_SIZE = 101
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


def predicted(prompt: list[int], count: int = 8) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens, VOCAB_SIZE))
    return tokens[len(prompt) :]


class Diary(LateMockRunner):
    """Writes down, for every step, when it was submitted and when it was waited for. Fails on the token `poison`."""

    def __init__(self, *, poison: int = -2, error: BaseException | None = None) -> None:
        super().__init__(vocab_size=VOCAB_SIZE, max_model_len=64)
        self.events: list[str] = []
        self.batches: list[Batch] = []
        self.executed: list[Batch] = []
        self.poison = poison
        self.error = error or RuntimeError("overheated")
        self.is_closed = False

    def submit(self, batch: Batch) -> PendingStep:
        self.batches.append(batch)
        self.events.append(f"submit {len(self.batches)}")
        return Noted(self, len(self.batches), super().submit(batch))

    def execute(self, batch: Batch) -> StepOutput:
        assert not self.is_closed
        self.executed.append(batch)
        if self.poison in batch.token_ids:
            raise self.error
        return super().execute(batch)

    def close(self) -> None:
        self.is_closed = True
        self.events.append("close")


class Noted:
    """A step of a diary."""

    def __init__(self, diary: Diary, number: int, step: PendingStep) -> None:
        self.diary, self.number, self.step = diary, number, step

    def result(self) -> StepOutput:
        self.diary.events.append(f"wait {self.number}")
        return self.step.result()


def engine_of(runner: MockRunner, **options: Any) -> LLMEngine:
    return make_engine(runner, block_size=4, max_model_len=64, **options)


def add(engine: LLMEngine, name: str, prompt: list[int], params: SamplingParams = GREEDY) -> None:
    engine.add(engine.prepare(name, prompt, replace(params, output_kind=RequestOutputKind.FINAL_ONLY)))


def run(engine: LLMEngine) -> dict[str, list[int]]:
    """Token ids of every request that finishes from now on, without an error."""
    finished = {}
    while engine.has_unfinished_requests:
        for out in engine.step():
            assert out.error is None
            finished[out.request_id] = out.outputs[0].token_ids
        engine.check_invariants()
    return finished


def num_unknown(batches: list[Batch]) -> list[int]:
    """Of each step, the tokens that the runner was not told."""
    return [int((batch.token_ids == LAST_SAMPLED).sum()) for batch in batches]


# -- order ------------------------------------------------------------------------------------------------------------


def test_a_step_is_submitted_before_the_one_before_it_is_waited_for() -> None:
    runner = Diary()
    engine = engine_of(runner)
    add(engine, "a", [1, 2], replace(GREEDY, max_tokens=3))
    assert run(engine) == {"a": predicted([1, 2], 3)}
    assert runner.events == ["submit 1", "submit 2", "wait 1", "submit 3", "wait 2", "wait 3"]
    assert num_unknown(runner.batches) == [0, 1, 1]


def test_a_request_is_told_its_first_token_by_the_step_call_that_starts_it() -> None:
    engine = engine_of(Diary())
    engine.add(engine.prepare("a", [1, 2], GREEDY))
    seen = [out.outputs[0].token_ids for _ in range(8) for out in engine.step()]
    assert seen == [predicted([1, 2])[: i + 1] for i in range(8)]
    assert not engine.has_unfinished_requests


def test_a_request_that_arrives_meanwhile_is_in_the_next_step_to_be_submitted() -> None:
    runner = Diary()
    engine = engine_of(runner)
    add(engine, "a", [1, 2])
    engine.step()
    add(engine, "b", [3])
    engine.step()
    assert [batch.num_seqs for batch in runner.batches] == [1, 1, 2]
    assert run(engine) == {"a": predicted([1, 2]), "b": predicted([3])}


def test_a_sequence_whose_last_token_is_in_flight_has_no_row_in_the_next_step() -> None:
    runner = Diary()
    engine = engine_of(runner)
    for i in range(4):
        add(engine, str(i), [i + 1], replace(GREEDY, max_tokens=i + 1))
    run(engine)
    assert [batch.num_seqs for batch in runner.batches] == [4, 3, 2, 1]


def test_without_async_scheduling_no_step_overlaps_another() -> None:
    runner = Diary()
    engine = engine_of(runner, async_scheduling=False)
    add(engine, "a", [1, 2], replace(GREEDY, max_tokens=3))
    assert run(engine) == {"a": predicted([1, 2], 3)}
    assert runner.events == ["submit 1", "wait 1", "submit 2", "wait 2", "submit 3", "wait 3"]
    assert num_unknown(runner.batches) == [0, 0, 0]


# -- what needs the last token ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [
        replace(GREEDY, repetition_penalty=1.3),
        replace(GREEDY, bad_words=["60 39", "27 7"]),
        replace(GREEDY, logits_processors=[lambda output, logits: logits * len(output)]),
        replace(GREEDY, ignore_eos=False, structured_outputs=StructuredOutputsParams(regex="([1-9] ){3,6}")),
    ],
    ids=["penalty", "bad words", "processor", "structured output"],
)
def test_a_step_waits_for_a_token_that_decides_what_may_come_next(params: SamplingParams) -> None:
    runner = Diary()
    prompts, asked = [[1, 2], [3, 4]], [params, replace(GREEDY, max_tokens=20)]
    outputs = run_requests(engine_of(runner), prompts, asked)
    plain = run_requests(engine_of(MockRunner(vocab_size=VOCAB_SIZE, max_model_len=64)), prompts, asked)
    assert [out.outputs for out in outputs] == [out.outputs for out in plain]
    num_steps = len(plain[0].outputs[0].token_ids)
    assert num_unknown(runner.batches[:num_steps]) == [0] * num_steps
    assert num_unknown(runner.batches[num_steps + 2 :]) == [1] * (20 - num_steps - 2)  # once it is gone


@pytest.mark.parametrize(
    "params",
    [
        replace(GREEDY, logit_bias={7: 2.0, 39: -100.0}),
        replace(GREEDY, allowed_token_ids=list(range(50))),
        replace(GREEDY, bad_words=["7", "39", "61"]),
    ],
    ids=["bias", "allowed tokens", "bad words of one token"],
)
def test_edits_that_stay_the_same_hold_up_no_step(params: SamplingParams) -> None:
    runner = Diary()
    (output,) = run_requests(engine_of(runner), [[1, 2]], params)
    (plain,) = run_requests(engine_of(MockRunner(vocab_size=VOCAB_SIZE, max_model_len=64)), [[1, 2]], params)
    assert output.outputs == plain.outputs
    assert output.outputs[0].token_ids != predicted([1, 2])
    assert num_unknown(runner.batches) == [0, *[1] * 7]


def test_min_tokens_holds_up_steps_until_there_are_as_many() -> None:
    runner = Diary()
    params = replace(GREEDY, min_tokens=3, stop_token_ids=predicted([1, 2]))
    (output,) = run_requests(engine_of(runner), [[1, 2]], params)
    (plain,) = run_requests(engine_of(MockRunner(vocab_size=VOCAB_SIZE, max_model_len=64)), [[1, 2]], params)
    assert output.outputs == plain.outputs
    assert num_unknown(runner.batches)[:5] == [0, 0, 0, 0, 1]


def test_what_is_guessed_ahead_is_not_scheduled_ahead() -> None:
    runner = Diary()
    engine = engine_of(runner, speculative_config={"num_speculative_tokens": 3})
    add(engine, "a", [1, 2])
    assert run(engine) == {"a": predicted([1, 2])}
    assert not any(num_unknown(runner.batches))
    with pytest.raises(ConfigError, match="async_scheduling and speculative_config are both set"):
        engine_of(Diary(), speculative_config={}, async_scheduling=True)


def test_async_scheduling_where_the_backend_cannot_is_an_error() -> None:
    with pytest.raises(ConfigError, match="async_scheduling is True"):
        engine_of(MockRunner(), async_scheduling=True)
    with pytest.raises(ConfigError, match="async_scheduling is True"):
        make_engine(Diary(), kv="per_sequence", async_scheduling=True)
    with pytest.raises(ConfigError, match="async_scheduling is 'yes'"):
        engine_of(Diary(), async_scheduling="yes")


# -- what ends --------------------------------------------------------------------------------------------------------


def test_the_row_of_a_sequence_that_has_ended_is_thrown_away_and_its_id_released_afterwards() -> None:
    runner = Diary()
    engine = engine_of(runner)
    stop = predicted([1, 2])[3]
    add(engine, "a", [1, 2], replace(GREEDY, stop_token_ids=[stop]))
    add(engine, "b", [3])
    assert run(engine) == {"a": predicted([1, 2], 4), "b": predicted([3])}
    assert [batch.num_seqs for batch in runner.batches] == [2, 2, 2, 2, 2, 1, 1, 1]
    assert [list(batch.released_seq_ids) for batch in runner.batches][5] == [0]
    assert engine.stats().num_free_kv_blocks == engine.stats().num_kv_blocks


def test_a_continuation_that_has_ended_says_nothing_more_while_its_sibling_goes_on() -> None:
    params = SamplingParams(n=2, temperature=4.0, seed=5, max_tokens=12, ignore_eos=True, logprobs=1)
    (whole,) = run_requests(engine_of(Diary(), async_scheduling=False), [[1, 2]], params)
    stop = whole.outputs[0].token_ids[3]
    assert whole.outputs[0].token_ids.index(stop) == 3
    assert stop not in whole.outputs[1].token_ids
    params = replace(params, stop_token_ids=[stop])
    (plain,) = run_requests(engine_of(Diary(), async_scheduling=False), [[1, 2]], params)
    (output,) = run_requests(engine_of(Diary()), [[1, 2]], params)
    assert output.outputs == plain.outputs
    engine = engine_of(Diary())
    engine.add(engine.prepare("a", [1, 2], replace(params, output_kind=RequestOutputKind.DELTA)))
    seen = []
    while engine.has_unfinished_requests:
        seen += [(one.index, one.finish_reason) for out in engine.step() for one in out.outputs]
    assert [index for index, _ in seen].count(0) == 4
    assert [index for index, _ in seen].count(1) == 12


def test_a_request_aborted_in_flight_is_gone_at_once_and_its_blocks_serve_others() -> None:
    runner = Diary()
    engine = engine_of(runner, num_kv_blocks=16)
    add(engine, "a", list(range(1, 41)), replace(GREEDY, max_tokens=20))
    add(engine, "b", [3])
    engine.step()
    engine.abort("a")
    engine.check_invariants()
    add(engine, "c", list(range(41, 81)), replace(GREEDY, max_tokens=20))
    assert run(engine) == {"b": predicted([3]), "c": predicted(list(range(41, 81)), 20)}
    assert engine.stats().num_free_kv_blocks == engine.stats().num_kv_blocks


def test_what_is_in_flight_when_everything_has_ended_does_not_disturb_what_comes_next() -> None:
    runner = Diary()
    engine = engine_of(runner)
    add(engine, "a", [1, 2], replace(GREEDY, stop_token_ids=[predicted([1, 2])[2]]))
    assert run(engine) == {"a": predicted([1, 2], 3)}
    assert not engine.has_unfinished_requests
    assert runner.events[-1] == "wait 3"
    assert len(runner.batches) == 4
    add(engine, "a", [1, 2])
    assert run(engine) == {"a": predicted([1, 2])}


def test_closing_waits_for_what_is_in_flight() -> None:
    runner = Diary()
    engine = engine_of(runner)
    add(engine, "a", [1, 2])
    engine.step()
    engine.close()
    assert runner.events == ["submit 1", "submit 2", "wait 1", "wait 2", "close"]
    assert engine.step() == []


# -- what fails -------------------------------------------------------------------------------------------------------


def test_a_step_on_top_of_one_that_failed_is_thrown_away_and_only_the_guilty_ends() -> None:
    runner = Diary(poison=99)
    engine = engine_of(runner)
    for name, prompt in {"a": [1], "b": [2], "bad": [99], "c": [3]}.items():
        add(engine, name, prompt)
    (failed,) = engine.step()
    assert (failed.request_id, failed.outputs[0].finish_reason) == ("bad", FinishReason.ERROR)
    assert "overheated" in str(failed.error)
    assert runner.events[:4] == ["submit 1", "submit 2", "wait 1", "wait 2"]
    engine.check_invariants()
    assert run(engine) == {"a": predicted([1]), "b": predicted([2]), "c": predicted([3])}
    assert engine.stats().num_failed_requests == 1


def test_a_sampled_token_that_the_runner_fails_on_ends_its_request_with_the_tokens_it_had() -> None:
    runner = Diary(poison=predicted([1, 2])[4])
    engine = engine_of(runner)
    add(engine, "bad", [1, 2])
    add(engine, "b", [3])
    outputs = {out.request_id: out for _ in range(12) for out in engine.step()}
    assert outputs["bad"].error is not None
    assert outputs["bad"].outputs[0].token_ids == predicted([1, 2], 5)
    assert outputs["b"].outputs[0].token_ids == predicted([3])


@pytest.mark.parametrize("prompts", [[[1, 2], [3]], [[1, 2], [3], [4], [5]]], ids=["one other", "three others"])
def test_nobody_is_to_blame_for_the_row_of_a_sequence_that_had_ended(prompts: list[list[int]]) -> None:
    stop = predicted([1, 2])[3]
    runner = Diary(poison=stop)  # which is only computed because the engine did not know that it ends the sequence
    engine = engine_of(runner)
    for i, prompt in enumerate(prompts):
        add(engine, str(i), prompt, replace(GREEDY, stop_token_ids=[stop]))
    expected = {str(i): predicted(prompt) for i, prompt in enumerate(prompts)} | {"0": predicted([1, 2], 4)}
    assert run(engine) == expected
    assert engine.stats().num_failed_requests == 0


def test_a_step_that_only_holds_what_has_ended_may_fail_unnoticed() -> None:
    stop = predicted([1, 2])[3]
    engine = engine_of(Diary(poison=stop))
    add(engine, "a", [1, 2], replace(GREEDY, stop_token_ids=[stop]))
    assert run(engine) == {"a": predicted([1, 2], 4)}
    add(engine, "b", [3])
    assert run(engine) == {"b": predicted([3])}


def test_a_release_is_told_again_where_the_step_that_told_it_was_thrown_away() -> None:
    runner = Diary(poison=predicted([2])[0])
    engine = engine_of(runner)
    add(engine, "a", [1], replace(GREEDY, max_tokens=1))  # ends in step 1; the runner hears of it in step 3
    add(engine, "bad", [2])  # fails in step 2
    add(engine, "c", [3])
    engine.step()
    engine.step()
    assert list(runner.batches[2].released_seq_ids) == [0]
    while engine.has_unfinished_requests:
        engine.step()
    add(engine, "d", [4])
    run(engine)
    succeeded = [batch for batch in runner.executed if runner.poison not in batch.token_ids]
    assert [seq_id for batch in succeeded for seq_id in batch.released_seq_ids] == [0, 1, 2]


def test_a_failing_step_leaves_the_log_probabilities_of_the_prompts_beside_it_alone() -> None:
    params = replace(GREEDY, prompt_logprobs=1, logprobs=1)
    prompts = [[1, 2, 3], [99, 4], [5, 6]]
    outputs = run_requests(engine_of(Diary(poison=99)), prompts, params)
    plain = run_requests(engine_of(MockRunner(vocab_size=VOCAB_SIZE, max_model_len=64)), prompts, params)
    assert [out.error is None for out in outputs] == [True, False, True]
    for i in (0, 2):
        assert (outputs[i].outputs, outputs[i].prompt_logprobs) == (plain[i].outputs, plain[i].prompt_logprobs)


def test_a_runner_that_refuses_a_step_at_once_is_not_given_the_next() -> None:
    class Refusing(Diary):
        def submit(self, batch: Batch) -> PendingStep:
            step = super().submit(batch)
            if self.poison in batch.token_ids:
                raise self.error
            return step

    runner = Refusing(poison=99)
    engine = engine_of(runner)
    add(engine, "a", [1])
    engine.step()
    add(engine, "bad", [99])
    engine.step()
    (failed,) = engine.step()
    assert failed.request_id == "bad"
    assert num_unknown(runner.batches) == [0, 1, 1, 0, 0]  # the last two are parts of the third
    assert run(engine) == {"a": predicted([1])}


class Interrupted(Diary):
    """Is interrupted, once, while step 3 is waited for."""

    has_been = False

    def execute(self, batch: Batch) -> StepOutput:
        if len(self.executed) == 2 and not self.has_been:
            self.has_been = True
            raise KeyboardInterrupt
        return super().execute(batch)


def test_a_step_that_was_interrupted_is_computed_again() -> None:
    runner = Interrupted()
    engine = engine_of(runner)
    add(engine, "a", [1, 2])
    add(engine, "b", [3])
    engine.step()
    engine.step()
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    engine.check_invariants()
    assert run(engine) == {"a": predicted([1, 2]), "b": predicted([3])}
    assert len(set(runner.events)) == len(runner.events), "a step was waited for twice"


def test_a_runner_that_overlaps_and_adds_tokens_of_its_own_is_a_backend_error() -> None:
    class Generous(Diary):
        def execute(self, batch: Batch) -> StepOutput:
            return StepOutput([[*token_ids, 1] for token_ids in super().execute(batch).token_ids])

    engine = engine_of(Generous())
    add(engine, "a", [1, 2])
    (output,) = engine.step()
    assert "returned [2] token ids" in str(output.error)


# -- the prefix cache -------------------------------------------------------------------------------------------------


def test_what_a_step_in_flight_computes_is_waited_for_and_not_computed_twice() -> None:
    shared = list(range(1, 13))
    for options in ({}, {"async_scheduling": False}):
        runner = Diary()
        engine = engine_of(runner, **options)
        add(engine, "a", [*shared, 20])
        engine.step()
        add(engine, "b", [*shared, 21])
        add(engine, "c", [*shared, 22])
        run(engine)
        assert sum(batch.num_tokens for batch in runner.batches) == 13 + 7 + 2 * 8
    engine = engine_of(runner := Diary())
    for i in range(3):
        add(engine, str(i), [*shared, 20 + i], replace(GREEDY, max_tokens=2))
    run(engine)
    assert sum(batch.num_tokens for batch in runner.batches) == 13 + 1 + 2 * 2


def test_what_was_generated_is_found_in_the_cache_by_the_next_turn() -> None:
    found = []
    for options in ({}, {"async_scheduling": False}):
        engine = engine_of(Diary(), **options)
        params = replace(GREEDY, max_tokens=30)
        (first,) = run_requests(engine, [[1, 2]], params)
        next_turn = [1, 2, *first.outputs[0].token_ids, 5, 6]
        (second,) = run_requests(engine, [next_turn], GREEDY)
        assert second.outputs[0].token_ids == predicted(next_turn)
        found.append(second.num_cached_tokens)
    assert found == [28, 28]


def test_what_is_in_flight_is_never_preempted() -> None:
    runner = Diary()
    engine = engine_of(runner, num_kv_blocks=16, enable_prefix_caching=False)
    prompts = [[i + 1, 2, 3] * 4 for i in range(4)]
    for i, prompt in enumerate(prompts):
        add(engine, str(i), prompt, replace(GREEDY, max_tokens=20))
    assert run(engine) == {str(i): predicted(prompt, 20) for i, prompt in enumerate(prompts)}
    assert engine.stats().num_preemptions > 0
    assert any(num_unknown(runner.batches))
    for before, batch in zip(runner.batches, runner.batches[1:], strict=False):
        preempted = set(batch.released_seq_ids) & set(before.seq_ids)
        assert not preempted or not num_unknown([batch])[0]


# -- the front ends ---------------------------------------------------------------------------------------------------


OVERLAP = {"backend": "mock", "backend_options": {"overlap": True}, "block_size": 4, "max_model_len": 64}


@pytest.fixture
def make_overlapping(make_llm: Callable[..., LLM]) -> Iterator[Callable[..., LLM]]:
    return lambda **options: make_llm(**{**OVERLAP, **options})


def test_generate_and_stream_say_what_they_say_without(make_overlapping: Callable[..., LLM]) -> None:
    prompts = ["one", "two three", "a language model", "one"]
    params = SamplingParams(temperature=1.0, seed=5, max_tokens=20)
    llm, plain = make_overlapping(), make_overlapping(async_scheduling=False)
    expected = [out.outputs for out in plain.generate(prompts, params)]
    assert [out.outputs for out in llm.generate(prompts, params)] == expected
    last = {out.request_id: out.outputs for out in llm.stream(prompts, params)}
    assert list(last.values()) == expected


def test_closing_a_stream_in_flight_leaves_the_others_alone(make_overlapping: Callable[..., LLM]) -> None:
    llm = make_overlapping()
    first, second = llm.stream([1, 2], GREEDY), llm.stream([3, 4], GREEDY)
    next(first)
    next(second)
    first.close()
    (expected,) = make_overlapping(async_scheduling=False).generate([3, 4], GREEDY)
    assert list(second)[-1].outputs == expected.outputs
    assert llm.stats().num_free_kv_blocks == llm.stats().num_kv_blocks


async def collected(llm: AsyncLLM, prompt: str, params: SamplingParams) -> list[int]:
    return [token_id async for out in llm.generate(prompt, params) for token_id in out.outputs[0].token_ids]


def test_async_requests_that_come_and_go_are_told_the_same(
    plugins: PluginManager, make_overlapping: Callable[..., LLM]
) -> None:
    import asyncio

    prompts = [f"request number {i}" for i in range(12)]
    params = SamplingParams(temperature=1.0, seed=5, max_tokens=20, output_kind=RequestOutputKind.DELTA)

    async def main() -> list[list[int]]:
        async with AsyncLLM("mock", plugins=plugins, max_num_seqs=5, **OVERLAP) as llm:
            left = llm.generate("somebody who leaves", params)
            await anext(left)
            tasks = [asyncio.create_task(collected(llm, prompt, params)) for prompt in prompts]
            await anext(left)
            await left.aclose()
            answers = await asyncio.gather(*tasks)
            await llm.abort("nobody")
            stats = llm.stats()
            assert stats.num_free_kv_blocks == stats.num_kv_blocks
            return answers

    plain = make_overlapping(async_scheduling=False).generate(prompts, params)
    assert asyncio.run(main()) == [out.outputs[0].token_ids for out in plain]


def test_the_option_of_the_mock_is_checked(make_overlapping: Callable[..., LLM]) -> None:
    with pytest.raises(ConfigError, match="overlap is 1"):
        make_overlapping(backend_options={"overlap": 1})


def test_a_token_that_the_step_before_did_not_sample_is_an_error_of_the_late_mock() -> None:
    runner = Diary()
    engine = engine_of(runner)
    add(engine, "a", [1, 2])
    engine.step()
    assert num_unknown(runner.batches) == [0, 1]
    engine.close()
    other = LateMockRunner(vocab_size=VOCAB_SIZE)
    other.allocate_kv_cache(16, 4)
    with pytest.raises(BackendError, match="did not sample"):
        other.submit(runner.batches[1]).result()


def test_the_rows_that_sample_unknown_tokens_are_those_of_the_same_sequences_in_the_step_before() -> None:
    runner = Diary()
    engine = engine_of(runner)
    for i in range(4):
        add(engine, str(i), [i + 1] * 2, replace(GREEDY, max_tokens=1 if i == 1 else 4))
    engine.step()
    before, batch = runner.batches
    assert batch.seq_ids == [0, 2, 3]
    indices, rows = last_sampled_rows(batch, before)
    assert (indices.tolist(), rows.tolist()) == ([0, 1, 2], [0, 2, 3])
    with pytest.raises(KeyError):
        last_sampled_rows(batch, replace(before, seq_ids=[5, 6, 7, 8]))
