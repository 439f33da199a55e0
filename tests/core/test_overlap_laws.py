"""With steps in flight, every request is told what it is told without, whatever arrives, ends and fails meanwhile.

The runner computes each step as late as it may and hashes the true tokens of the whole context, so a wrong token, slot
or order of steps shows. It fails on the token POISON, which may come in a prompt and may be sampled.
"""

from dataclasses import replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from backends.mock.late_runner import LateMockRunner
from nanovllm import RequestOutputKind, SamplingParams, StructuredOutputsParams
from nanovllm.batch import LAST_SAMPLED, Batch, StepOutput
from nanovllm.plugins import PendingStep
from nanovllm.testing import make_engine, run_requests
from tests.core.request_machine import (
    MAX_LEN,
    POISON,
    VOCAB_SIZE,
    RequestMachine,
    check_poison,
    facts,
    facts_alone,
    prompts,
)


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


class OverlapMachine(RequestMachine):
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
        engine = make_engine(
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
        self.serve(engine)

    @rule(
        prompt=prompts,
        asked=st.one_of(plain_params(), plain_params(), plain_params(), edited_params),
        kind=st.sampled_from(RequestOutputKind),
        priority=st.integers(-2, 2),
    )
    def ask(self, prompt: tuple[int, ...], asked: SamplingParams, kind: RequestOutputKind, priority: int) -> None:
        priority = priority if self.policy == "priority" else 0
        self.submit(prompt, replace(asked, output_kind=kind), priority=priority)


TestOverlap = OverlapMachine.TestCase
TestOverlap.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def num_unknown(options: dict[str, Any], params: SamplingParams) -> tuple[int, int]:
    """Tokens that a runner was not told, and preemptions, in a run of six requests that is right."""
    runner = LateRunner()
    engine = make_engine(runner, block_size=4, max_model_len=MAX_LEN, **options)
    many = [[1 + i, 2, 3] * 5 for i in range(6)]
    outputs = run_requests(engine, many, params)
    assert [facts(output) for output in outputs] == [facts_alone(tuple(prompt), params) for prompt in many]
    return runner.num_unknown, engine.stats().num_preemptions


def test_the_law_above_is_about_steps_in_flight_and_also_about_preemption() -> None:
    params = SamplingParams(temperature=0.6, seed=0, max_tokens=20, ignore_eos=True, stop_token_ids=[POISON])
    many, _ = num_unknown({}, params)
    some, num_preemptions = num_unknown({"num_kv_blocks": 14}, params)
    assert many > some > 0
    assert num_preemptions > 0
    assert num_unknown({"async_scheduling": False}, params)[0] == 0
