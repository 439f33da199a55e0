"""A machine of random requests: whatever else runs beside it, one that ends must say what it says alone.

Runners here fail on the token POISON. What is submitted, and to which engine, is what a machine made of this one adds.
"""

from functools import cache
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from backends.mock.runner import MockRunner
from nanovllm import RequestOutput, RequestOutputKind, SamplingParams
from nanovllm.batch import LAST_SAMPLED, Batch, StepOutput
from nanovllm.engine.engine import LLMEngine
from nanovllm.testing import make_engine, run_requests

__all__ = [
    "MAX_LEN",
    "POISON",
    "VOCAB_SIZE",
    "PoisonedRunner",
    "RequestMachine",
    "check_poison",
    "facts",
    "facts_alone",
    "prompts",
]

VOCAB_SIZE = 12
MAX_LEN = 48
POISON = 11

tokens = st.integers(0, 4) | st.integers(0, POISON)
prompts = (st.lists(tokens, min_size=1, max_size=20) | st.lists(st.just(3), min_size=1, max_size=20)).map(tuple)

Facts = tuple[bool, tuple[Any, ...], Any]


def check_poison(batch: Batch) -> None:
    if POISON in batch.token_ids:
        raise RuntimeError("this token is poison")


class PoisonedRunner(MockRunner):
    """The mock, with the vocabulary and the length that all machines share."""

    def __init__(self) -> None:
        super().__init__(vocab_size=VOCAB_SIZE, max_model_len=MAX_LEN)

    def execute(self, batch: Batch) -> StepOutput:
        check_poison(batch)
        return super().execute(batch)


def facts(output: RequestOutput) -> Facts:
    """What must not depend on anything else: whether it failed, its completions, the prompt's log-probabilities.

    Siblings end together where the runner fails on one: when is chance.
    """
    failed = output.error is not None
    completions = tuple(
        (one.index, one.text, one.token_ids, one.finish_reason, one.stop_reason, one.logprobs, one.cumulative_logprob)
        for one in output.outputs
    )
    return (failed, () if failed and len(completions) > 1 else completions, failed or output.prompt_logprobs)


@cache
def plain_engine() -> LLMEngine:
    return make_engine(PoisonedRunner(), block_size=4, max_model_len=MAX_LEN, enable_prefix_caching=False)


def facts_alone(prompt: tuple[int, ...], asked: SamplingParams) -> Facts:
    """Of the same request by itself, in a plain engine."""
    return facts(run_requests(plain_engine(), [prompt], asked)[0])


class RequestMachine(RuleBasedStateMachine):
    """Steps and aborts. A subclass calls `serve` in its initialize rule, and `submit` with what it draws."""

    def serve(self, engine: LLMEngine) -> None:
        self.engine = engine
        self.asked: dict[str, tuple[tuple[int, ...], SamplingParams]] = {}
        self.streamed: dict[str, dict[int, list[int]]] = {}
        self.num_requests = 0

    def submit(self, prompt: tuple[int, ...], asked: SamplingParams, **options: Any) -> None:
        """options: of `LLMEngine.prepare`."""
        name = str(self.num_requests)
        self.num_requests += 1
        self.engine.add(self.engine.prepare(name, prompt, asked, **options))
        self.asked[name] = prompt, asked
        self.streamed[name] = {}

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.asked)))
        self.engine.abort(name)
        del self.asked[name]
        assert not self.engine.is_unfinished(name)

    @rule(count=st.integers(1, 8))
    def steps(self, count: int) -> None:
        for _ in range(count):
            for output in self.engine.step():
                self.take(output)

    def take(self, output: RequestOutput) -> None:
        prompt, asked = self.asked[output.request_id]
        streamed = self.streamed[output.request_id]
        is_delta = asked.output_kind is RequestOutputKind.DELTA
        for one in output.outputs:
            assert LAST_SAMPLED not in one.token_ids
            streamed[one.index] = (streamed.get(one.index, []) if is_delta else []) + one.token_ids
        if not output.finished:
            return
        del self.asked[output.request_id]
        failed, completions, prompt_logprobs = expected = facts_alone(prompt, asked)
        assert (output.error is not None) == failed, output.error
        assert all(one.finish_reason is not None for one in output.outputs)
        if asked.output_kind is RequestOutputKind.FINAL_ONLY:
            assert facts(output) == expected
        elif completions:
            assert [streamed.get(i, []) for i in range(asked.n)] == [token_ids for _, _, token_ids, *_ in completions]
            assert failed or output.prompt_logprobs == prompt_logprobs

    @invariant()
    def books_agree(self) -> None:
        self.engine.check_invariants()

    def teardown(self) -> None:
        num_steps = 0
        while self.engine.has_unfinished_requests:
            self.steps(1)
            self.engine.check_invariants()
            num_steps += 1
            assert num_steps < 5000, "it never ends"
        stats = self.engine.stats()
        assert stats.num_free_kv_blocks == stats.num_kv_blocks
        assert not self.asked
        self.engine.close()
