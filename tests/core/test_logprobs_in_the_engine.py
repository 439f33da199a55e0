"""Log-probabilities of prompts and outputs: right at every position, however the engine cut, cached or preempted."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.mock.runner import MockRunner, next_token
from nanovllm import RequestError, RequestOutput, SamplingParams
from nanovllm.batch import Batch
from nanovllm.engine.engine import LLMEngine
from nanovllm.testing import make_engine, run_requests

VOCAB_SIZE = 11
PARAMS = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True, logprobs=2, prompt_logprobs=3)


class RowCounter(MockRunner):
    """A mock that notes how many rows of logits each step wanted."""

    def __init__(self) -> None:
        super().__init__(vocab_size=VOCAB_SIZE, max_model_len=256)
        self.num_rows: list[int] = []

    def forward(self, batch: Batch) -> npt.NDArray[np.float32]:
        self.num_rows.append(batch.num_logits)
        return super().forward(batch)


def engine_of(runner: MockRunner | None = None, **options: Any) -> LLMEngine:
    return make_engine(runner or RowCounter(), **{"block_size": 4, "max_model_len": 64, **options})


def log_probabilities(context: list[int]) -> npt.NDArray[np.float64]:
    """Of the token after `context`, by the mock's rule."""
    target = next_token(context, VOCAB_SIZE)
    logits = (np.random.default_rng(target).random(VOCAB_SIZE, np.float32) * 4).astype(np.float64)
    logits[target] = 6
    return logits - np.log(np.exp(logits).sum())


def check(output: RequestOutput, num_prompt: int, num_likeliest: int) -> None:
    """Every log-probability against the mock's rule."""
    prompt, completion = output.prompt_token_ids, output.outputs[0]
    tokens = prompt + completion.token_ids
    assert completion.logprobs is not None
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    entries = output.prompt_logprobs[1:] + completion.logprobs
    assert len(entries) == len(tokens) - 1
    chosen = []
    for position, entry in enumerate(entries, start=1):
        assert entry is not None
        expected = log_probabilities(tokens[:position])
        count = num_prompt if position < len(prompt) else num_likeliest
        order = np.argsort(-expected, kind="stable").tolist()
        assert next(iter(entry)) == tokens[position]
        assert set(entry) == {tokens[position], *order[:count]}
        for token_id, logprob in entry.items():
            assert logprob.logprob == pytest.approx(expected[token_id], abs=1e-5)
            assert order[logprob.rank - 1] == token_id
            assert logprob.decoded_token == f"{token_id} "
        if position >= len(prompt):
            chosen.append(entry[tokens[position]].logprob)
    assert completion.cumulative_logprob == pytest.approx(sum(chosen))


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=30), min_size=1, max_size=5),
    st.sampled_from(
        [
            {},
            {"max_num_batched_tokens": 5, "max_num_seqs": 4},
            {"num_kv_blocks": 16, "max_num_seqs": 6},
            {"max_num_seqs": 3, "max_num_logits": 5},
            {"enable_prefix_caching": False, "max_num_seqs": 2, "max_num_logits": 3},
        ]
    ),
)
@settings(max_examples=40, deadline=None)
def test_every_log_probability_is_the_model_s(prompts: list[list[int]], options: dict[str, Any]) -> None:
    engine = engine_of(**options)
    for _ in range(2):  # the second time there are cached prefixes
        for output in run_requests(engine, prompts, PARAMS):
            check(output, 3, 2)


def test_a_request_for_log_probabilities_of_the_prompt_takes_no_token_from_the_cache_but_leaves_its_own() -> None:
    engine = engine_of()
    prompt = [1, 2, 3] * 6
    run_requests(engine, [prompt], replace(PARAMS, prompt_logprobs=None))
    (output,) = run_requests(engine, [prompt], PARAMS)
    assert output.num_cached_tokens == 0
    check(output, 3, 2)
    (output,) = run_requests(engine, [prompt], replace(PARAMS, prompt_logprobs=None))
    assert output.num_cached_tokens == 16


def test_a_preempted_request_gets_each_log_probability_of_its_prompt_once() -> None:
    engine = engine_of(num_kv_blocks=16, max_num_seqs=6)
    prompts = [[i, 1, 2, 3] * 5 for i in range(6)]
    outputs = run_requests(engine, prompts, replace(PARAMS, max_tokens=30))
    assert engine.stats().num_preemptions > 0
    for output in outputs:
        check(output, 3, 2)


def test_a_request_preempted_in_the_middle_of_its_prompt_gets_each_log_probability_once() -> None:
    engine = engine_of(num_kv_blocks=13, max_num_seqs=2, max_num_batched_tokens=2, max_model_len=48)
    params = [replace(PARAMS, max_tokens=40, prompt_logprobs=None), PARAMS]
    _, output = run_requests(engine, [[1] * 4, [1, 2, 3] * 10], params)
    assert engine.stats().num_preemptions > 0
    check(output, 3, 2)


def test_no_step_wants_more_rows_of_logits_than_the_limit() -> None:
    runner = RowCounter()
    engine = engine_of(runner, max_num_seqs=4, max_num_logits=10)
    outputs = run_requests(engine, [[1, 2, 3] * 12, [2, 1] * 20, [3], [1, 1, 3] * 15], PARAMS)
    assert 6 < max(runner.num_rows) <= 10
    for output in outputs:
        check(output, 3, 2)


def test_without_chunked_prefill_a_prompt_that_needs_too_many_rows_is_refused() -> None:
    engine = engine_of(enable_chunked_prefill=False, max_num_seqs=4, max_num_logits=10)
    with pytest.raises(RequestError, match="max_num_logits"):
        run_requests(engine, [[1] * 8], PARAMS)
    check(run_requests(engine, [[1] * 7], PARAMS)[0], 3, 2)


def test_minus_one_means_the_whole_vocabulary_and_zero_the_token_alone() -> None:
    (output,) = run_requests(engine_of(), [[1, 2, 3]], replace(PARAMS, logprobs=-1, prompt_logprobs=0))
    check(output, 0, VOCAB_SIZE)


def test_log_probabilities_are_of_the_model_and_not_of_what_penalties_and_temperature_make_of_it() -> None:
    edited = replace(
        PARAMS, temperature=2.0, top_k=4, seed=1, repetition_penalty=1.5, presence_penalty=1.0, logit_bias={3: 5.0}
    )
    (output,) = run_requests(engine_of(), [[1, 2, 3]], edited)
    check(output, 3, 2)


def test_streamed_log_probabilities_belong_to_the_tokens_of_their_delta() -> None:
    from nanovllm import RequestOutputKind

    whole = run_requests(engine_of(), [[1, 2, 3]], PARAMS)[0].outputs[0]
    engine = engine_of()
    engine.add(engine.prepare("0", [1, 2, 3], replace(PARAMS, output_kind=RequestOutputKind.DELTA)))
    token_ids, logprobs = [], []
    while engine.has_unfinished_requests:
        for output in engine.step():
            delta = output.outputs[0]
            assert delta.logprobs is not None
            assert len(delta.logprobs) == len(delta.token_ids)
            token_ids += delta.token_ids
            logprobs += delta.logprobs
    assert (token_ids, logprobs) == (whole.token_ids, whole.logprobs)
