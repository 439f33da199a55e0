"""Laws of the engine, through `LLM` on the mock: what a request is told does not depend on what runs beside it."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import backends.mock.plugin
from backends.mock.runner import MockRunner, next_token
from backends.mock.simple_bpe import SimpleBPE
from nanovllm import (
    LLM,
    BackendError,
    ConfigError,
    EngineConfig,
    FinishReason,
    RequestOutput,
    RequestOutputKind,
    SamplingParams,
)
from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.engine import LLMEngine
from nanovllm.plugins import (
    Batch,
    ModelRunner,
    ModelRunnerPlugin,
    ModelSource,
    StepOutput,
    Verdict,
    hookimpl,
)
from nanovllm.plugins.manager import PluginManager
from nanovllm.sampler import uniform

VOCAB_SIZE = 512
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
TIGHT = {"num_kv_blocks": 8, "max_model_len": 32}  # one sequence of full length, or a few short ones: preemption
TINY_BUDGET = {"max_num_batched_tokens": 4, "max_num_seqs": 4}

MakeLLM = Callable[..., LLM]


def predicted(prompt: list[int], params: SamplingParams = GREEDY) -> list[int]:
    tokens = list(prompt)
    for _ in range(params.max_tokens or 0):
        tokens.append(next_token(tokens, VOCAB_SIZE))
        if tokens[-1] == 0 and not params.ignore_eos:
            break
    return tokens[len(prompt) :]


def token_ids_of(outputs: list[RequestOutput]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


def offline(**options: object) -> LLM:
    """As the fixture `make_llm`, where Hypothesis makes many."""
    plugins = PluginManager()
    plugins.register(backends.mock.plugin, "mock")
    defaults = {"backend": "mock", "block_size": 4, "num_kv_blocks": 64, "max_model_len": 32}
    return LLM("mock", plugins=plugins, **{**defaults, **options})


prompts = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=18), min_size=1, max_size=6)
requests = st.lists(
    st.tuples(
        st.lists(st.integers(1, 3), min_size=1, max_size=18),
        st.builds(
            SamplingParams,
            temperature=st.sampled_from([0.0, 0.7, 2.0]),
            top_k=st.sampled_from([0, 5]),
            top_p=st.sampled_from([1.0, 0.8]),
            seed=st.integers(0, 3),
            max_tokens=st.integers(1, 14),
        ),
    ),
    min_size=1,
    max_size=6,
)


@given(requests)
@settings(max_examples=25)
def test_a_request_says_the_same_alone_batched_cached_chunked_and_preempted(
    asked: list[tuple[list[int], SamplingParams]],
) -> None:
    params = [param for _, param in asked]
    texts = [prompt for prompt, _ in asked]
    llm = offline()
    alone = [token_ids_of(llm.generate(prompt, param))[0] for prompt, param in asked]
    for prompt, param, token_ids in zip(texts, params, alone, strict=True):
        assert param.temperature > 0 or token_ids == predicted(prompt, param)
    assert token_ids_of(offline().generate(texts, params)) == alone
    assert token_ids_of(offline(enable_prefix_caching=False).generate(texts, params)) == alone
    assert token_ids_of(offline(**TINY_BUDGET).generate(texts, params)) == alone
    assert token_ids_of(offline(**TIGHT).generate(texts, params)) == alone
    assert token_ids_of(offline(**TIGHT, **TINY_BUDGET, scheduling_policy="priority").generate(texts, params)) == alone
    assert token_ids_of(llm.generate(texts, params)) == alone  # from the cache
    assert llm.stats().num_free_kv_blocks == llm.stats().num_kv_blocks


def test_the_settings_of_these_laws_do_chunk_preempt_and_hit(make_llm: MakeLLM) -> None:
    prompts = [[1, 2, 3] * 6, [2, 3, 1] * 6, [3, 1, 2] * 6]
    params = replace(GREEDY, temperature=1.0, seed=7, top_k=20)
    undisturbed = make_llm()
    whole = token_ids_of(undisturbed.generate(prompts, params))
    assert undisturbed.stats().num_preemptions == 0
    tight = make_llm(**{**TIGHT, "num_kv_blocks": 12})
    assert token_ids_of(tight.generate(prompts, params)) == whole
    assert tight.stats().num_preemptions > 0
    chunked = make_llm(**TINY_BUDGET)
    assert token_ids_of(chunked.generate(prompts, params)) == whole
    assert chunked.stats().num_steps > undisturbed.stats().num_steps
    again = undisturbed.generate(prompts, params)
    assert token_ids_of(again) == whole
    assert [output.num_cached_tokens for output in again] == [16, 16, 16]


def test_a_sampled_request_differs_by_seed_and_not_by_the_time_it_is_asked(make_llm: MakeLLM) -> None:
    llm = make_llm()
    params = [SamplingParams(temperature=5.0, seed=seed, ignore_eos=True) for seed in (1, 2, 1)]
    first, other, same = token_ids_of(llm.generate([[5, 6]] * 3, params))
    assert first == same
    assert first != other


def test_requests_without_a_seed_differ_from_each_other_and_repeat_with_the_engine_s_seed(make_llm: MakeLLM) -> None:
    params = SamplingParams(temperature=5.0, ignore_eos=True)
    first = token_ids_of(make_llm(seed=3).generate([[5, 6]] * 2, params))
    assert first[0] != first[1]
    assert token_ids_of(make_llm(seed=3).generate([[5, 6]] * 2, params)) == first
    assert token_ids_of(make_llm(seed=4).generate([[5, 6]] * 2, params)) != first


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=3), st.integers(1, 14), st.booleans())
@settings(max_examples=25)
def test_the_text_is_the_decoded_tokens_and_streamed_deltas_add_up_to_it(
    texts: list[str], max_tokens: int, ignore_eos: bool
) -> None:
    llm = offline(max_model_len=128)
    params = SamplingParams(temperature=1.0, seed=1, max_tokens=max_tokens, ignore_eos=ignore_eos)
    whole = llm.generate(texts, params)
    for output in whole:
        assert output.finished
        assert output.outputs[0].text == SimpleBPE().decode(output.outputs[0].token_ids)
    collected: dict[str, tuple[str, list[int]]] = {}
    for output in llm.stream(texts, replace(params, output_kind=RequestOutputKind.DELTA)):
        text, token_ids = collected.get(output.request_id, ("", []))
        delta = output.outputs[0]
        collected[output.request_id] = text + delta.text, token_ids + delta.token_ids
    assert list(collected.values()) == [(output.outputs[0].text, output.outputs[0].token_ids) for output in whole]


def test_a_cumulative_stream_only_grows_and_ends_with_what_generate_says(make_llm: MakeLLM) -> None:
    llm = make_llm()
    (whole,) = llm.generate("A language model", GREEDY)
    seen = [output.outputs[0] for output in llm.stream("A language model", GREEDY)]
    assert [len(output.token_ids) for output in seen] == list(range(1, 13))
    assert all(later.text.startswith(earlier.text) for earlier, later in pairwise(seen))
    assert (seen[-1].text, seen[-1].token_ids) == (whole.outputs[0].text, whole.outputs[0].token_ids)
    assert [output.finish_reason for output in seen] == [None] * 11 + [FinishReason.LENGTH]


@pytest.mark.parametrize("kind", [RequestOutputKind.DELTA, RequestOutputKind.CUMULATIVE])
def test_a_preempted_stream_says_nothing_while_it_is_computed_again(kind: RequestOutputKind, make_llm: MakeLLM) -> None:
    llm = make_llm(**{**TIGHT, "num_kv_blocks": 12, "enable_prefix_caching": False, **TINY_BUDGET})
    num_outputs: dict[str, int] = {}
    for output in llm.stream([[1, 2, 3] * 6, [2, 3, 1] * 6, [3, 1, 2] * 6], replace(GREEDY, output_kind=kind)):
        num_outputs[output.request_id] = num_outputs.get(output.request_id, 0) + 1
    assert llm.stats().num_preemptions > 0
    assert list(num_outputs.values()) == [GREEDY.max_tokens] * 3


def test_closing_a_stream_frees_its_blocks_at_once(make_llm: MakeLLM) -> None:
    llm = make_llm()
    stream = llm.stream([[1, 2, 3], [4, 5, 6]], GREEDY)
    next(stream)
    assert llm.stats().num_running == 2
    stream.close()
    stats = llm.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_free_kv_blocks) == (0, 0, stats.num_kv_blocks)
    assert token_ids_of(llm.generate([7, 8], GREEDY)) == [predicted([7, 8])]


def test_generate_inside_the_loop_of_a_stream_disturbs_neither(make_llm: MakeLLM) -> None:
    llm = make_llm()
    inner, last = [], []
    for output in llm.stream([[1, 2, 3], [4, 5]], GREEDY):
        if len(inner) < 4:
            inner += token_ids_of(llm.generate([[9, len(inner) + 1]], GREEDY))
        if output.finished:
            last.append(output)
    assert inner == [predicted([9, i + 1]) for i in range(4)]
    assert sorted(token_ids_of(last)) == sorted([predicted([1, 2, 3]), predicted([4, 5])])


def test_two_streams_read_in_turn_each_get_their_own(make_llm: MakeLLM) -> None:
    llm = make_llm()
    first, second = llm.stream([1, 2], GREEDY), llm.stream([3, 4], GREEDY)
    pairs = [(a.outputs[0].token_ids, b.outputs[0].token_ids) for a, b in zip(first, second, strict=True)]
    assert pairs[-1] == (predicted([1, 2]), predicted([3, 4]))


class FailingRunner(MockRunner):
    """A mock that raises `error` in the steps that hold the token `poison`."""

    def __init__(self, error: Exception, poison: int = 99) -> None:
        super().__init__(max_model_len=64)
        self.error = error
        self.poison = poison
        self.num_closed = 0

    def execute(self, batch: Batch) -> StepOutput:
        if self.poison in batch.token_ids:
            raise self.error
        return super().execute(batch)

    def close(self) -> None:
        self.num_closed += 1


def make_engine(runner: ModelRunner, **options: object) -> LLMEngine:
    blocks = BlockManager(32, 4)
    runner.allocate_kv_cache(32, 4)
    return LLMEngine(runner, SimpleBPE(), blocks, EngineConfig.from_options(options), 64)


def run_engine(engine: LLMEngine) -> dict[str, list[int]]:
    """Token ids of every request that finishes from now on."""
    finished = {}
    while engine.has_unfinished_requests:
        engine.check_invariants()
        finished.update({out.request_id: out.outputs[0].token_ids for out in engine.step() if out.finished})
    return finished


class FlatRunner(MockRunner):
    """All tokens are equally likely, so a sampled token shows the random number that picked it."""

    def forward(self, batch: Batch) -> npt.NDArray[np.float32]:
        return np.zeros((batch.num_logits, VOCAB_SIZE), np.float32)


def test_a_sampled_token_is_picked_by_the_request_s_seed_and_its_own_position() -> None:
    engine = make_engine(FlatRunner(max_model_len=64))
    params = [SamplingParams(seed=seed, max_tokens=6, ignore_eos=True) for seed in (3, 2**64 - 1, -1)]
    for i, param in enumerate(params):
        engine.add(engine.prepare(str(i), [1] * (i + 1), param))
    expected = {}
    for i, seed in enumerate((3, 2**64 - 1, 2**64 - 1)):
        numbers = uniform(np.full(6, seed, np.uint64), np.arange(i + 1, i + 7))
        expected[str(i)] = (numbers * VOCAB_SIZE).astype(int).tolist()
    assert run_engine(engine) == expected


def errors_of(outputs: list[RequestOutput]) -> dict[str, str]:
    """What the requests that failed in a step are told."""
    assert all((out.outputs[0].finish_reason is FinishReason.ERROR) == (out.error is not None) for out in outputs)
    return {out.request_id: str(out.error) for out in outputs if out.error is not None}


@pytest.mark.parametrize("error", [ZeroDivisionError("one / zero"), BackendError("the device is gone")])
def test_a_request_that_the_runner_fails_on_is_found_and_ended_and_costs_no_other_a_token(error: Exception) -> None:
    engine = make_engine(FailingRunner(error), max_num_seqs=4)
    for request_id, prompt in {"a": [1], "b": [2], "bad": [99], "c": [3], "d": [4]}.items():
        engine.add(engine.prepare(request_id, prompt, GREEDY))
    outputs = engine.step()
    assert list(errors_of(outputs)) == ["bad"]
    assert str(error) in errors_of(outputs)["bad"]
    assert [out.request_id for out in outputs] == ["a", "b", "bad", "c"]
    assert (engine.stats().num_failed_requests, engine.stats().num_finished_requests) == (1, 1)
    assert run_engine(engine) == {name: predicted([i]) for i, name in enumerate("abcd", start=1)}
    assert engine.stats().num_free_kv_blocks == engine.stats().num_kv_blocks


def test_several_bad_requests_among_many_are_found_in_one_step() -> None:
    engine = make_engine(FailingRunner(RuntimeError("no")), max_num_seqs=20)
    for i in range(20):
        engine.add(engine.prepare(str(i), [99 if i in (3, 4, 17) else i + 1], GREEDY))
    assert list(errors_of(engine.step())) == ["3", "4", "17"]
    expected = {str(i): predicted([i + 1]) for i in range(20) if i not in (3, 4, 17)}
    assert run_engine(engine) == expected


@given(bad=st.sets(st.integers(0, 29), max_size=10))
@example(bad=set(range(0, 30, 3)))
def test_a_third_of_many_requests_may_be_bad_and_the_others_are_answered(bad: set[int]) -> None:
    engine = make_engine(FailingRunner(RuntimeError("no")), max_num_seqs=64)
    for i in range(30):
        engine.add(engine.prepare(str(i), [99 if i in bad else i + 1], GREEDY))
    assert set(errors_of(engine.step())) == {str(i) for i in bad}
    engine.check_invariants()


class DeadRunner(FailingRunner):
    """Counts how often it is asked in vain."""

    num_calls = 0

    def execute(self, batch: Batch) -> StepOutput:
        self.num_calls += 1
        raise self.error


def test_a_runner_that_fails_on_everything_is_not_asked_for_ever() -> None:
    runner = DeadRunner(RuntimeError("gone"))
    engine = make_engine(runner, max_num_seqs=64, max_num_batched_tokens=64)
    for i in range(30):
        engine.add(engine.prepare(str(i), [i + 1], GREEDY))
    assert len(errors_of(engine.step())) == 30
    assert runner.num_calls < 30
    assert not engine.has_unfinished_requests
    engine.check_invariants()


def test_all_continuations_of_a_request_end_where_the_runner_fails_on_one() -> None:
    engine = make_engine(FailingRunner(RuntimeError("no"), poison=-1))
    params = replace(GREEDY, temperature=1.0, seed=1, n=3)
    engine.add(engine.prepare("a", [1, 2], params))
    first = engine.step()[0].outputs
    engine._runner.poison = first[0].token_ids[0]
    (output,) = engine.step()
    assert output.finished
    assert output.error is not None
    assert [completion.finish_reason for completion in output.outputs] == [FinishReason.ERROR] * 3
    engine.check_invariants()


def test_a_runner_that_raises_in_a_later_step_ends_what_runs_and_the_engine_serves_what_comes() -> None:
    runner = FailingRunner(RuntimeError("overheated"), poison=-1)
    engine = make_engine(runner)
    engine.add(engine.prepare("a", [1, 2], GREEDY))
    for _ in range(3):
        engine.step()
    runner.poison = predicted([1, 2])[2]  # the token that the fourth step computes
    (output,) = engine.step()
    assert "1 sequences and 1 tokens: RuntimeError: overheated" in str(output.error)
    assert output.outputs[0].token_ids == predicted([1, 2])[:3]
    assert not engine.has_unfinished_requests
    assert engine.stats().num_free_kv_blocks == engine.stats().num_kv_blocks
    runner.poison = -1
    engine.add(engine.prepare("a", [1, 2], GREEDY))
    assert run_engine(engine) == {"a": predicted([1, 2])}


class MiscountingRunner(MockRunner):
    """Returns what `spoil` makes of a step's token ids."""

    def __init__(self, spoil: Callable[[list[list[int]]], list[list[int]]]) -> None:
        super().__init__(max_model_len=64)
        self.spoil = spoil

    def execute(self, batch: Batch) -> StepOutput:
        return StepOutput(self.spoil([list(ids) for ids in super().execute(batch).token_ids]))


@pytest.mark.parametrize("token_id", [-1, VOCAB_SIZE])
def test_a_token_that_the_model_does_not_have_is_a_backend_error(token_id: int) -> None:
    engine = make_engine(MiscountingRunner(lambda ids: [[token_id] for _ in ids]))
    engine.add(engine.prepare("0", [1], GREEDY))
    assert f"{token_id}" in errors_of(engine.step())["0"]


@pytest.mark.parametrize(
    "spoil",
    [lambda ids: ids[:-1], lambda ids: [*ids, [1]], lambda ids: [[], *ids[1:]], lambda ids: []],
    ids=["one too few", "one too many", "nothing for a wanted row", "nothing at all"],
)
def test_a_runner_that_returns_the_wrong_number_of_tokens_is_a_backend_error_and_no_hang(
    spoil: Callable[[list[list[int]]], list[list[int]]],
) -> None:
    engine = make_engine(MiscountingRunner(spoil))
    for i in range(2):
        engine.add(engine.prepare(str(i), [i + 1], GREEDY))
    assert all("returned" in error for error in errors_of(engine.step()).values())
    assert not engine.has_unfinished_requests
    engine.check_invariants()


def failing_plugins(poison: int = 99) -> PluginManager:
    """A manager whose backend "failing" fails on the token `poison`."""

    class Plugin:
        @hookimpl
        def nanovllm_model_runners(self) -> list[ModelRunnerPlugin]:
            return [
                ModelRunnerPlugin(
                    name="failing",
                    factory=lambda source, config: FailingRunner(RuntimeError("poisoned"), poison),
                    can_load=lambda source: Verdict(True, "it loads anything"),
                    needs_folder=False,
                    tokenizer="simple-bpe",
                )
            ]

    plugins = PluginManager()
    plugins.register(backends.mock.plugin, "mock")
    plugins.register(Plugin(), "failing")
    return plugins


def test_a_stream_goes_on_where_another_s_request_made_a_step_fail() -> None:
    llm = LLM("any", backend="failing", plugins=failing_plugins(), block_size=4)
    stream = llm.stream([1, 2], GREEDY)
    next(stream)
    with pytest.raises(BackendError, match="poisoned"):
        llm.generate([[99]], GREEDY)
    assert list(stream)[-1].outputs[0].token_ids == predicted([1, 2])
    assert token_ids_of(llm.generate([1, 2], GREEDY)) == [predicted([1, 2])]


def test_a_generate_whose_requests_waited_while_a_step_failed_goes_on() -> None:
    poison = predicted([7])[3]
    llm = LLM("any", backend="failing", plugins=failing_plugins(poison), block_size=4, max_num_seqs=1)
    stream = llm.stream([7], replace(GREEDY, output_kind=RequestOutputKind.DELTA))
    next(stream)
    assert token_ids_of(llm.generate([1, 2], GREEDY)) == [predicted([1, 2])]  # makes the stream's steps, too
    seen = [next(stream).outputs[0].token_ids for _ in range(3)]  # what came before the failure
    assert seen == [[token_id] for token_id in predicted([7])[1:4]]
    with pytest.raises(BackendError, match="poisoned"):
        next(stream)


def test_a_stream_that_is_open_when_the_model_is_closed_ends_with_an_error() -> None:
    llm = offline()
    stream = llm.stream([1, 2], GREEDY)
    next(stream)
    llm.close()
    with pytest.raises(BackendError, match="closed"):
        next(stream)


class DenseRunner(ModelRunner):
    """Keeps the tokens of each sequence by its id, looks at no block, and checks that the engine tells it enough."""

    def __init__(self, max_model_len: int = 32) -> None:
        self.model_info = replace(MockRunner().model_info, max_model_len=max_model_len)
        self.states: dict[int, list[int]] = {}
        self.max_states = 0
        self.pool = (0, 0)

    def kv_bytes_per_block(self, block_size: int) -> int:
        return block_size

    def allocate_kv_cache(self, num_blocks: int, block_size: int) -> None:
        self.pool = num_blocks, block_size

    def execute(self, batch: Batch) -> StepOutput:
        for seq_id in batch.released_seq_ids:
            self.states.pop(seq_id, None)
        sampled: list[list[int]] = []
        for i, seq_id in enumerate(batch.seq_ids):
            state = self.states.setdefault(seq_id, [])
            new = slice(batch.query_start[i], batch.query_start[i + 1])
            assert len(state) == batch.context_lens[i]
            assert np.array_equal(batch.positions[new], np.arange(len(state), len(state) + new.stop - new.start))
            assert batch.block_tables[i].tolist() == [batch.block_tables[i, 0]]
            state.extend(batch.token_ids[new].tolist())
            wanted = batch.logits_start[i + 1] > batch.logits_start[i]
            sampled.append([next_token(state, VOCAB_SIZE)] if wanted else [])
        self.max_states = max(self.max_states, len(self.states))
        return StepOutput(sampled)


def dense_plugins(runner: DenseRunner) -> PluginManager:
    class Plugin:
        @hookimpl
        def nanovllm_model_runners(self) -> list[ModelRunnerPlugin]:
            return [
                ModelRunnerPlugin(
                    name="dense",
                    factory=lambda source, config: runner,
                    can_load=self.can_load,
                    needs_folder=False,
                    kv="per_sequence",
                    tokenizer="simple-bpe",
                )
            ]

        def can_load(self, source: ModelSource) -> Verdict:
            return Verdict(False, "only by name")

    plugins = PluginManager()
    plugins.register(backends.mock.plugin, "mock")
    plugins.register(Plugin(), "dense")
    return plugins


def test_a_runner_with_state_per_sequence_gets_every_token_once_and_is_told_what_to_drop() -> None:
    runner = DenseRunner()
    options = {"max_num_seqs": 3, "max_num_batched_tokens": 7}
    llm = LLM("any", backend="dense", plugins=dense_plugins(runner), **options)
    assert runner.pool == (3, 32)
    prompts = [[1, 2, 3, 4, 5, 6, 7, 8, 9, i + 1] for i in range(8)]
    for _ in range(2):  # the second time, too: there is no prefix cache
        outputs = llm.generate(prompts, GREEDY)
        assert token_ids_of(outputs) == [predicted(prompt) for prompt in prompts]
        assert [output.num_cached_tokens for output in outputs] == [0] * 8
    assert runner.max_states <= 3
    stream = llm.stream([1, 2], GREEDY)
    next(stream)
    stream.close()
    assert token_ids_of(llm.generate([3, 4], GREEDY)) == [predicted([3, 4])]
    assert len(runner.states) == 1  # only the last one, which the next step will report


def test_a_block_size_for_a_runner_with_state_per_sequence_is_refused_and_not_ignored() -> None:
    with pytest.raises(ConfigError, match="block_size is 16"):
        LLM("any", backend="dense", plugins=dense_plugins(DenseRunner()), block_size=16)


def test_an_aborted_request_ends_at_once_waiting_or_running_and_the_others_go_on() -> None:
    engine = make_engine(MockRunner(max_model_len=64), max_num_seqs=2)
    for i in range(4):
        engine.add(engine.prepare(str(i), [i + 1], GREEDY))
    engine.step()
    engine.abort("1")  # runs
    engine.abort("3")  # waits
    engine.abort("nobody")
    engine.check_invariants()
    assert run_engine(engine) == {"0": predicted([1]), "2": predicted([3])}
    assert engine.stats().num_free_kv_blocks == engine.stats().num_kv_blocks
    assert engine.stats().num_finished_requests == 4


def test_closing_an_engine_ends_every_request_and_closes_the_runner() -> None:
    runner = FailingRunner(RuntimeError(), poison=-1)
    engine = make_engine(runner)
    engine.add(engine.prepare("a", [1], GREEDY))
    engine.step()
    engine.close()
    assert not engine.has_unfinished_requests
    assert runner.num_closed == 1
    assert engine.step() == []


def test_the_counters_of_the_engine_add_up(make_llm: MakeLLM) -> None:
    llm = make_llm()
    llm.generate([[1, 2, 3, 4, 5]], GREEDY)
    llm.generate([[1, 2, 3, 4, 5]], GREEDY)
    stats = llm.stats()
    assert (stats.prefill_tokens + stats.decode_tokens, stats.num_steps) == (5 + 11 + 1 + 11, 24)
    assert (stats.prefix_cache_queries, stats.prefix_cache_hits) == (10, 4)
    assert stats.num_finished_requests == 2
    assert (stats.kv_cache_usage, stats.prefix_cache_hit_rate) == (0.0, 0.4)


def test_a_request_ends_at_the_longest_length_of_the_model(make_llm: MakeLLM) -> None:
    (output,) = make_llm(max_model_len=16).generate([[1] * 10], replace(GREEDY, max_tokens=None))
    assert len(output.outputs[0].token_ids) == 6
    assert output.outputs[0].finish_reason is FinishReason.LENGTH
