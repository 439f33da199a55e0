"""Speculation says the same, sooner: whatever is drafted, the output is that of no speculation at all."""

from array import array
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.mock.runner import MockRunner
from nanovllm import ConfigError, EngineConfig, RequestOutput, SamplingParams
from nanovllm.batch import Batch
from nanovllm.config import SpeculativeConfig
from nanovllm.engine.engine import LLMEngine
from nanovllm.engine.speculation import NgramIndex
from nanovllm.plugins import StepOutput
from nanovllm.testing import make_engine, run_requests

VOCAB_SIZE = 8
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
NGRAM = {"speculative_config": {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 1}}


class EchoingRunner(MockRunner):
    """Likes to repeat: the likeliest token is the one that stood `period` tokens before. Reads its whole context back
    through the block table, as the mock does. Notes the rows of every step."""

    def __init__(self, period: int = 3) -> None:
        super().__init__(vocab_size=VOCAB_SIZE, max_model_len=256)
        self.period = period
        self.num_rows: list[int] = []

    def forward(self, batch: Batch) -> npt.NDArray[np.float32]:
        self.num_rows.append(batch.num_logits)
        logits = super().forward(batch) / 6
        row = 0
        for i in range(batch.num_seqs):
            for index in batch.logits_indices[batch.logits_start[i] : batch.logits_start[i + 1]]:
                context = self._read(batch, i, int(batch.positions[index]) + 1)
                logits[row, context[-min(self.period, len(context))]] += 2
                row += 1
        return logits


def engine_of(runner: MockRunner, **options: Any) -> LLMEngine:
    return make_engine(runner, **{"block_size": 4, "max_model_len": 128, **options})


def answers(outputs: list[RequestOutput]) -> list[tuple[list[int], object, object]]:
    return [(out.outputs[0].token_ids, out.outputs[0].finish_reason, out.outputs[0].stop_reason) for out in outputs]


@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.integers(1, 3), st.integers(0, 2), st.integers(1, 6))
def test_the_index_finds_what_a_search_finds(tokens: list[int], shortest: int, more: int, count: int) -> None:
    longest = shortest + more
    index = NgramIndex(longest, shortest)
    for end in range(1, len(tokens) + 1):
        index.extend(array("q", tokens[:end]))
    assert index.continuation(array("q", tokens), count).tolist() == searched(tokens, longest, shortest, count)


def searched(tokens: list[int], longest: int, shortest: int, count: int) -> list[int]:
    for size in range(longest, shortest - 1, -1):
        for start in range(len(tokens) - size - 1, -1, -1):
            if len(tokens) > size and tokens[start : start + size] == tokens[-size:]:
                text = tokens[start + size :]
                while len(text) < count:
                    text = text + text
                return text[:count]
    return []


mixes = st.lists(
    st.tuples(
        st.lists(st.integers(0, 3), min_size=1, max_size=20),
        st.builds(
            SamplingParams,
            temperature=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
            top_p=st.sampled_from([1.0, 0.9]),
            repetition_penalty=st.sampled_from([1.0, 1.2]),
            presence_penalty=st.sampled_from([0.0, 0.5]),
            min_tokens=st.integers(0, 4),
            seed=st.integers(0, 3),
            max_tokens=st.integers(4, 24),
            stop=st.sampled_from([None, ["3 "], ["1 2", "2 2 "]]),
            logprobs=st.sampled_from([None, 2]),
        ),
    ),
    min_size=1,
    max_size=5,
)


@given(mixes, st.integers(1, 4), st.sampled_from([{}, {"num_kv_blocks": 32, "max_num_seqs": 4}]))
@settings(max_examples=40, deadline=None)
def test_the_output_is_that_of_no_speculation(
    asked: list[tuple[list[int], SamplingParams]], period: int, options: dict[str, Any]
) -> None:
    prompts, params = [prompt for prompt, _ in asked], [param for _, param in asked]
    plain = run_requests(engine_of(EchoingRunner(period), **options), prompts, params)
    speculated = run_requests(engine_of(EchoingRunner(period), **NGRAM, **options), prompts, params)
    assert answers(speculated) == answers(plain)
    for one, other in zip(speculated, plain, strict=True):
        assert one.outputs[0].text == other.outputs[0].text
        assert one.outputs[0].logprobs == other.outputs[0].logprobs


def test_a_text_that_repeats_itself_takes_a_fraction_of_the_steps() -> None:
    prompt = [1, 2, 3, 1, 2, 3]
    runner = EchoingRunner()
    engine = engine_of(runner, **NGRAM)
    (output,) = run_requests(engine, [prompt], GREEDY)
    assert output.outputs[0].token_ids == [1, 2, 3] * 8
    stats = engine.stats()
    assert stats.num_steps == 6  # the prompt, then five tokens a step
    assert output.metrics is not None
    drafts = output.metrics.num_draft_tokens, output.metrics.num_accepted_tokens
    assert drafts == (stats.num_draft_tokens, stats.num_accepted_tokens) == (18, 18)
    assert stats.num_free_kv_blocks == stats.num_kv_blocks


def test_nothing_is_drafted_while_more_sequences_run_than_the_limit() -> None:
    limited = {"speculative_config": {"max_num_seqs": 2, "prompt_lookup_min": 1}}
    runner = EchoingRunner()
    run_requests(engine_of(runner, **limited), [[i, 2, 3] * 3 for i in range(3)], GREEDY)
    assert max(runner.num_rows) == 3
    runner = EchoingRunner()
    run_requests(engine_of(runner, **limited), [[i, 2, 3] * 3 for i in range(2)], GREEDY)
    assert max(runner.num_rows) > 3


def test_a_sequence_whose_drafts_fail_is_left_alone_for_a_while() -> None:
    engine = engine_of(MockRunner(vocab_size=3, max_model_len=256), max_model_len=256, **NGRAM)
    run_requests(engine, [[0, 1] * 4], replace(GREEDY, temperature=3.0, seed=1, max_tokens=200))
    busy = engine.stats().num_draft_tokens
    tolerant = {"speculative_config": {**NGRAM["speculative_config"], "min_acceptance_rate": 0.0}}
    engine = engine_of(MockRunner(vocab_size=3, max_model_len=256), max_model_len=256, **tolerant)
    run_requests(engine, [[0, 1] * 4], replace(GREEDY, temperature=3.0, seed=1, max_tokens=200))
    assert 0 < busy <= engine.stats().num_draft_tokens
    strict = {"speculative_config": {**NGRAM["speculative_config"], "min_acceptance_rate": 1.0}}
    engine = engine_of(MockRunner(vocab_size=3, max_model_len=256), max_model_len=256, **strict)
    run_requests(engine, [[0, 1] * 4], replace(GREEDY, temperature=3.0, seed=1, max_tokens=200))
    assert 0 < engine.stats().num_draft_tokens < busy


def test_drafts_never_take_a_block_from_another_sequence_nor_rows_that_are_not_there() -> None:
    runner = EchoingRunner()
    options = {"max_num_logits": 6, "max_num_seqs": 4, "num_kv_blocks": 32, "max_model_len": 128}
    engine = engine_of(runner, **NGRAM, **options)
    run_requests(engine, [[1, 2, 3] * 5] * 4, GREEDY)
    assert max(runner.num_rows) <= 6
    assert engine.stats().num_accepted_tokens > 0


class HandsFreeRunner(MockRunner):
    """Samples by itself and knows nothing of drafts."""

    honours = frozenset()

    def execute(self, batch: Batch) -> StepOutput:
        return super().execute(batch)


def test_a_backend_that_cannot_take_a_token_back_refuses_speculation() -> None:
    with pytest.raises(ConfigError, match="guessed wrong"):
        engine_of(HandsFreeRunner(), **NGRAM)
    with pytest.raises(ConfigError, match="guessed wrong"):
        make_engine(MockRunner(), kv="per_sequence", max_model_len=64, **NGRAM)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "medusa"}, "'ngram'"),
        ({"num_speculative_tokens": 0}, "at least 1"),
        ({"prompt_lookup_min": 5, "prompt_lookup_max": 4}, "must not be the larger"),
        ({"min_acceptance_rate": 2}, "from 0 to 1"),
        ({"num_tokens": 3}, "Did you mean"),
    ],
)
def test_settings_of_speculation_out_of_range_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        EngineConfig.from_options({"speculative_config": options})
    assert EngineConfig.from_options({"speculative_config": {}}).speculative_config == SpeculativeConfig()
