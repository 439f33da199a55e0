"""Everything at once: random mixes of all that a request can ask for, under every way of scheduling.

One machine submits, aborts and steps; whatever finishes must say what the same request says alone in a plain engine.
Some requests hold a token that the runner cannot take: they, and only they, end with an error.
"""

from dataclasses import replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from nanovllm import FinishReason, RequestOutput, RequestOutputKind, SamplingParams, StructuredOutputsParams
from nanovllm.batch import Batch, StepOutput
from nanovllm.testing import make_engine
from tests.core.request_machine import MAX_LEN, POISON, PoisonedRunner, RequestMachine, prompts


class BoundedRunner(PoisonedRunner):
    """Checks that no step is larger than it may be."""

    def __init__(self, max_tokens: int, max_rows: int) -> None:
        super().__init__()
        self.max_tokens, self.max_rows = max_tokens, max_rows

    def execute(self, batch: Batch) -> StepOutput:
        assert batch.num_tokens <= self.max_tokens
        assert batch.num_logits <= self.max_rows
        return super().execute(batch)


def half(_output: list[int], logits: Any) -> Any:
    return logits * 0.5


FORMS = [
    None,
    StructuredOutputsParams(regex="([1-9] ){2,5}"),
    StructuredOutputsParams(choice=["1 2 3 ", "1 2 ", "4 "]),
]


@st.composite
def params(draw: st.DrawFn) -> SamplingParams:
    temperature = draw(st.sampled_from([0.0, 0.6, 1.0, 4.0]))
    form = draw(st.sampled_from(FORMS))
    max_tokens = draw(st.integers(1, 20))
    return SamplingParams(
        n=1 if temperature == 0 else draw(st.integers(1, 3)),
        temperature=temperature,
        top_k=draw(st.sampled_from([0, 3])),
        top_p=draw(st.sampled_from([1.0, 0.8])),
        min_p=draw(st.sampled_from([0.0, 0.05])),
        seed=draw(st.integers(0, 2)),
        max_tokens=max_tokens,
        min_tokens=min(draw(st.sampled_from([0, 0, 3])), max_tokens),
        presence_penalty=draw(st.sampled_from([0.0, 0.7])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.3])),
        frequency_penalty=draw(st.sampled_from([0.0, -0.5])),
        logit_bias={POISON: -100.0, **draw(st.sampled_from([{}, {3: 2.0}]))},
        allowed_token_ids=draw(st.sampled_from([None, list(range(11))])),
        bad_words=draw(st.sampled_from([None, ["2 3 "]])),
        stop=draw(st.sampled_from([None, ["4 4"], ["1 ", "7 8 "]])),
        stop_token_ids=draw(st.sampled_from([None, [9]])),
        include_stop_str_in_output=draw(st.booleans()),
        ignore_eos=form is None and draw(st.booleans()),
        logprobs=draw(st.sampled_from([None, None, 0, 2])),
        prompt_logprobs=draw(st.sampled_from([None, None, 1])),
        logits_processors=draw(st.sampled_from([None, None, [half]])),
        structured_outputs=form,
    )


class EngineMachine(RequestMachine):
    @initialize(
        block_size=st.sampled_from([1, 4, 7]),
        spare_blocks=st.integers(0, 8),
        max_num_seqs=st.integers(1, 5),
        spare_budget=st.integers(0, 12),
        spare_rows=st.integers(1, 9),
        policy=st.sampled_from(["fcfs", "priority"]),
        caching=st.booleans(),
        speculative=st.sampled_from([None, {"num_speculative_tokens": 3, "prompt_lookup_min": 1, "max_num_seqs": 3}]),
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
        speculative: dict[str, Any] | None,
    ) -> None:
        runner = BoundedRunner(max_tokens=max_num_seqs + spare_budget, max_rows=max_num_seqs + spare_rows)
        self.policy = policy
        engine = make_engine(
            runner,
            block_size=block_size,
            num_kv_blocks=-(-MAX_LEN // block_size) + spare_blocks,
            max_model_len=MAX_LEN,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=runner.max_tokens,
            max_num_logits=runner.max_rows,
            scheduling_policy=policy,
            enable_prefix_caching=caching,
            speculative_config=speculative,
        )
        self.serve(engine)

    @rule(
        prompt=prompts,
        asked=params(),
        kind=st.sampled_from(RequestOutputKind),
        priority=st.integers(-2, 2),
        salt=st.sampled_from(["", "a"]),
    )
    def ask(
        self, prompt: tuple[int, ...], asked: SamplingParams, kind: RequestOutputKind, priority: int, salt: str
    ) -> None:
        priority = priority if self.policy == "priority" else 0
        self.submit(prompt, replace(asked, output_kind=kind), priority=priority, cache_salt=salt)

    def take(self, output: RequestOutput) -> None:
        prompt, _ = self.asked[output.request_id]
        super().take(output)
        if output.finished:
            assert (output.error is not None) == (POISON in prompt), "it is never sampled here"
        if output.error is not None:
            assert all(one.finish_reason is FinishReason.ERROR for one in output.outputs)


TestEngine = EngineMachine.TestCase
TestEngine.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
