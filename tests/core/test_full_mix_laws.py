"""Everything at once: random mixes of all that a request can ask for, under every way of scheduling.

One machine submits, aborts and steps; whatever finishes must say what the same request says alone in a plain engine.
Some requests hold a token that the runner cannot take: they, and only they, end with an error.
"""

from dataclasses import replace
from functools import cache
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from backends.mock.runner import MockRunner
from nanovllm import FinishReason, RequestOutput, RequestOutputKind, SamplingParams, StructuredOutputsParams
from nanovllm.batch import Batch, StepOutput
from nanovllm.engine.engine import LLMEngine
from nanovllm.testing import make_engine, run_requests

VOCAB_SIZE = 12
MAX_LEN = 48
POISON = 11


class Runner(MockRunner):
    """Fails on the token POISON, and checks that no step is larger than it may be."""

    max_tokens = max_rows = 10**6

    def __init__(self) -> None:
        super().__init__(vocab_size=VOCAB_SIZE, max_model_len=MAX_LEN)

    def execute(self, batch: Batch) -> StepOutput:
        assert batch.num_tokens <= self.max_tokens
        assert batch.num_logits <= self.max_rows
        if POISON in batch.token_ids:
            raise RuntimeError("this token is poison")
        return super().execute(batch)


def half(_output: list[int], logits: Any) -> Any:
    return logits * 0.5


FORMS = [
    None,
    StructuredOutputsParams(regex="([1-9] ){2,5}"),
    StructuredOutputsParams(choice=["1 2 3 ", "1 2 ", "4 "]),
]
tokens = st.integers(0, 4) | st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 8, POISON])
prompts = st.lists(tokens, min_size=1, max_size=20).map(tuple) | st.lists(st.just(3), min_size=1, max_size=20).map(
    tuple
)


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


def facts(output: RequestOutput) -> tuple[Any, ...]:
    """What must not depend on anything else."""
    completions = tuple(
        (one.index, one.text, one.token_ids, one.finish_reason, one.stop_reason, one.logprobs) for one in output.outputs
    )
    return completions, output.prompt_logprobs, output.error is None


@cache
def _alone_engine() -> LLMEngine:
    return make_engine(Runner(), block_size=4, max_model_len=MAX_LEN, enable_prefix_caching=False)


def alone(prompt: tuple[int, ...], asked: SamplingParams) -> tuple[Any, ...]:
    return facts(run_requests(_alone_engine(), [prompt], asked)[0])


class EngineMachine(RuleBasedStateMachine):
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
        runner = Runner()
        runner.max_tokens = max_num_seqs + spare_budget
        runner.max_rows = max_num_seqs + spare_rows
        self.policy = policy
        self.engine = make_engine(
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
        self.asked: dict[str, tuple[tuple[int, ...], SamplingParams]] = {}
        self.streams: dict[str, dict[int, list[int]]] = {}
        self.num_requests = 0

    @rule(prompt=prompts, asked=params(), priority=st.integers(-2, 2), salt=st.sampled_from(["", "a"]))
    def submit(self, prompt: tuple[int, ...], asked: SamplingParams, priority: int, salt: str) -> None:
        name = str(self.num_requests)
        self.num_requests += 1
        kind = [RequestOutputKind.FINAL_ONLY, RequestOutputKind.CUMULATIVE, RequestOutputKind.DELTA][len(prompt) % 3]
        request = self.engine.prepare(
            name,
            prompt,
            replace(asked, output_kind=kind),
            priority=priority if self.policy == "priority" else 0,
            cache_salt=salt,
        )
        self.engine.add(request)
        self.asked[name] = prompt, asked
        self.streams[name] = {}

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.asked)))
        self.engine.abort(name)
        del self.asked[name]
        assert not self.engine.is_unfinished(name)

    @rule(count=st.integers(1, 12))
    def steps(self, count: int) -> None:
        for _ in range(count):
            for output in self.engine.step():
                self.take(output)

    def take(self, output: RequestOutput) -> None:
        prompt, asked = self.asked[output.request_id]
        seen = self.streams[output.request_id]
        is_delta = len(prompt) % 3 == 2
        for one in output.outputs:
            seen[one.index] = (seen.get(one.index, []) if is_delta else []) + one.token_ids
        if not output.finished:
            return
        del self.asked[output.request_id]
        expected = alone(prompt, asked)
        assert (output.error is not None) == (POISON in prompt), output.error
        if output.error is not None:
            assert all(one.finish_reason is FinishReason.ERROR for one in output.outputs)
        elif len(prompt) % 3 == 0:
            assert facts(output) == expected
        else:
            assert [seen[i] for i in range(asked.n)] == [token_ids for _, _, token_ids, *_ in expected[0]]
            assert output.prompt_logprobs == expected[1]

    @invariant()
    def books_agree(self) -> None:
        self.engine.check_invariants()

    def teardown(self) -> None:
        num_steps = 0
        while self.engine.has_unfinished_requests:
            self.steps(1)
            num_steps += 1
            assert num_steps < 5000, "it never ends"
        stats = self.engine.stats()
        assert stats.num_free_kv_blocks == stats.num_kv_blocks
        assert not self.asked
        self.engine.close()


TestEngine = EngineMachine.TestCase
TestEngine.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
