"""With steps in flight, every request is told what it is told without, whatever arrives, ends and fails meanwhile.

The runner computes each step as late as it may and hashes the true tokens of the whole context, so a wrong token, slot
or order of steps shows. It fails on the token POISON, which may come in a prompt and may be sampled.
"""

from functools import cache
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from backends.mock.late_runner import LateMockRunner
from backends.mock.runner import MockRunner
from nanovllm import RequestOutput, RequestOutputKind, SamplingParams, StructuredOutputsParams
from nanovllm.batch import LAST_SAMPLED, Batch, StepOutput
from nanovllm.engine.engine import LLMEngine
from nanovllm.plugins import PendingStep
from nanovllm.testing import make_engine, run_requests

VOCAB_SIZE = 12
MAX_LEN = 48
POISON = 11


def check_poison(batch: Batch) -> None:
    if POISON in batch.token_ids:
        raise RuntimeError("this token is poison")


class PlainRunner(MockRunner):
    def __init__(self) -> None:
        super().__init__(vocab_size=VOCAB_SIZE, max_model_len=MAX_LEN)

    def execute(self, batch: Batch) -> StepOutput:
        check_poison(batch)
        return super().execute(batch)


class LateRunner(LateMockRunner):
    """Counts the tokens that it was not told."""

    def __init__(self) -> None:
        super().__init__(vocab_size=VOCAB_SIZE, max_model_len=MAX_LEN)
        self.num_unknown = 0

    def submit(self, batch: Batch) -> PendingStep:
        self.num_unknown += int((batch.token_ids == LAST_SAMPLED).sum())
        return super().submit(batch)

    def execute(self, batch: Batch) -> StepOutput:
        check_poison(batch)
        return super().execute(batch)


tokens = st.integers(0, 4) | st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, POISON])
prompts = st.lists(tokens, min_size=1, max_size=20).map(tuple) | st.lists(st.just(3), min_size=1, max_size=20).map(
    tuple
)


@st.composite
def plain_params(draw: st.DrawFn) -> SamplingParams:
    """Nothing that needs the last token before the next step."""
    temperature = draw(st.sampled_from([0.0, 0.6, 4.0]))
    return SamplingParams(
        n=1 if temperature == 0 else draw(st.integers(1, 3)),
        temperature=temperature,
        top_k=draw(st.sampled_from([0, 3])),
        top_p=draw(st.sampled_from([1.0, 0.8])),
        seed=draw(st.integers(0, 2)),
        max_tokens=draw(st.integers(1, 20)),
        stop=draw(st.sampled_from([None, None, ["4 4"], ["1 ", "7 8 "]])),
        stop_token_ids=draw(st.sampled_from([None, [9], [POISON]])),
        include_stop_str_in_output=draw(st.booleans()),
        ignore_eos=draw(st.booleans()),
        logprobs=draw(st.sampled_from([None, None, 2])),
        prompt_logprobs=draw(st.sampled_from([None, None, None, 1])),
    )


edited_params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 2),
    max_tokens=st.integers(3, 12),
    min_tokens=st.sampled_from([0, 3]),
    presence_penalty=st.sampled_from([0.0, 0.0, 0.7]),
    bad_words=st.sampled_from([None, ["5 "], ["2 3 "]]),
    allowed_token_ids=st.sampled_from([None, list(range(11))]),
    logit_bias=st.just({POISON: -100.0, 3: 2.0}),
    structured_outputs=st.sampled_from([None, None, None, StructuredOutputsParams(regex="([1-9] ){2,5}")]),
)


def facts(output: RequestOutput) -> tuple[Any, ...]:
    """What must not depend on anything else. Siblings end together where the runner fails on one: when is chance."""
    failed = output.error is not None
    completions = tuple(
        (one.index, one.text, one.token_ids, one.finish_reason, one.stop_reason, one.logprobs, one.cumulative_logprob)
        for one in output.outputs
    )
    return (failed, () if failed and len(completions) > 1 else completions, failed or output.prompt_logprobs)


@cache
def alone_engine() -> LLMEngine:
    return make_engine(PlainRunner(), block_size=4, max_model_len=MAX_LEN, enable_prefix_caching=False)


def alone(prompt: tuple[int, ...], asked: SamplingParams) -> tuple[Any, ...]:
    return facts(run_requests(alone_engine(), [prompt], asked)[0])


class OverlapMachine(RuleBasedStateMachine):
    @initialize(
        block_size=st.sampled_from([1, 4, 7]),
        spare_blocks=st.integers(0, 40),
        max_num_seqs=st.integers(1, 6),
        spare_budget=st.integers(0, 30),
        spare_rows=st.integers(1, 9),
        policy=st.sampled_from(["fcfs", "priority"]),
        caching=st.booleans(),
    )
    def build(
        self,
        block_size: int,
        spare_blocks: int,
        max_num_seqs: int,
        spare_budget: int,
        spare_rows: int,
        policy: str,
        caching: bool,
    ) -> None:
        self.policy = policy
        self.engine = make_engine(
            LateRunner(),
            block_size=block_size,
            num_kv_blocks=-(-MAX_LEN // block_size) + spare_blocks,
            max_model_len=MAX_LEN,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_seqs + spare_budget,
            max_num_logits=max_num_seqs + spare_rows,
            scheduling_policy=policy,
            enable_prefix_caching=caching,
        )
        self.asked: dict[str, tuple[tuple[int, ...], SamplingParams]] = {}
        self.streamed: dict[str, dict[int, list[int]]] = {}
        self.num_requests = 0

    @rule(
        prompt=prompts,
        asked=st.one_of(plain_params(), plain_params(), plain_params(), edited_params),
        kind=st.sampled_from(RequestOutputKind),
        priority=st.integers(-2, 2),
    )
    def submit(self, prompt: tuple[int, ...], asked: SamplingParams, kind: RequestOutputKind, priority: int) -> None:
        name = f"{self.num_requests} {kind.name}"
        self.num_requests += 1
        request = self.engine.prepare(name, prompt, asked, priority=priority if self.policy == "priority" else 0)
        request.output_kind = kind
        self.engine.add(request)
        self.asked[name] = prompt, asked
        self.streamed[name] = {}

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.asked)))
        self.engine.abort(name)
        del self.asked[name]
        assert not self.engine.is_unfinished(name)

    @rule(count=st.integers(1, 6))
    def steps(self, count: int) -> None:
        for _ in range(count):
            for output in self.engine.step():
                self.take(output)

    def take(self, output: RequestOutput) -> None:
        prompt, asked = self.asked[output.request_id]
        is_delta = output.request_id.endswith("DELTA")
        streamed = self.streamed[output.request_id]
        for one in output.outputs:
            assert LAST_SAMPLED not in one.token_ids
            streamed[one.index] = (streamed.get(one.index, []) if is_delta else []) + one.token_ids
        if not output.finished:
            return
        del self.asked[output.request_id]
        failed, completions, prompt_logprobs = alone(prompt, asked)
        assert (output.error is not None) == failed, output.error
        if output.request_id.endswith("FINAL_ONLY"):
            assert facts(output) == (failed, completions, prompt_logprobs)
        elif completions:
            assert [streamed.get(i, []) for i in range(asked.n)] == [token_ids for _, _, token_ids, *_ in completions]
            assert [one.finish_reason for one in output.outputs if one.finish_reason is None] == []

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


TestOverlap = OverlapMachine.TestCase
TestOverlap.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def num_unknown(options: dict[str, Any], params: SamplingParams) -> tuple[int, int]:
    """Tokens that a runner was not told, and preemptions, in a run of six requests that is right."""
    runner = LateRunner()
    engine = make_engine(runner, block_size=4, max_model_len=MAX_LEN, **options)
    many = [[1 + i, 2, 3] * 5 for i in range(6)]
    outputs = run_requests(engine, many, params)
    assert [facts(output) for output in outputs] == [alone(tuple(prompt), params) for prompt in many]
    return runner.num_unknown, engine.stats().num_preemptions


def test_the_law_above_is_about_steps_in_flight_and_also_about_preemption() -> None:
    params = SamplingParams(temperature=0.6, seed=0, max_tokens=20, ignore_eos=True, stop_token_ids=[POISON])
    many, _ = num_unknown({}, params)
    some, num_preemptions = num_unknown({"num_kv_blocks": 14}, params)
    assert many > some > 0
    assert num_preemptions > 0
    assert num_unknown({"async_scheduling": False}, params)[0] == 0
