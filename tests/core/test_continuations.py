"""n continuations of one prompt: each as a request of its own would be, over the prompt's shared blocks."""

from dataclasses import replace
from typing import Any

import pytest

from backends.mock.runner import MockRunner
from nanovllm import RequestOutputKind, SamplingParams
from nanovllm.engine.engine import LLMEngine
from nanovllm.testing import make_engine, run_requests

PARAMS = SamplingParams(temperature=1.0, seed=5, max_tokens=9, ignore_eos=True)
PROMPT = [1, 2, 3] * 5


def engine_of(**options: Any) -> LLMEngine:
    return make_engine(MockRunner(vocab_size=50), **{"block_size": 4, "max_model_len": 64, **options})


@pytest.mark.parametrize("options", [{}, {"num_kv_blocks": 16}, {"max_num_batched_tokens": 4, "max_num_seqs": 4}])
def test_each_continuation_is_the_request_of_the_next_seed(options: dict[str, Any]) -> None:
    (output,) = run_requests(engine_of(**options), [PROMPT], replace(PARAMS, n=4))
    alone = [run_requests(engine_of(), [PROMPT], replace(PARAMS, seed=5 + i))[0].outputs[0] for i in range(4)]
    assert [completion.index for completion in output.outputs] == [0, 1, 2, 3]
    assert [completion.token_ids for completion in output.outputs] == [one.token_ids for one in alone]
    assert [completion.text for completion in output.outputs] == [one.text for one in alone]


def test_the_prompt_s_full_blocks_are_computed_once_and_shared() -> None:
    engine = engine_of()
    engine.add(engine.prepare("a", PROMPT, replace(PARAMS, n=8)))
    most_used = 0
    while engine.has_unfinished_requests:
        engine.step()
        stats = engine.stats()
        most_used = max(most_used, stats.num_kv_blocks - stats.num_free_kv_blocks)
    assert stats.prefill_tokens == len(PROMPT) + 7 * 3  # all but the first find 12 of 15 tokens
    assert most_used == 3 + 8 * 3  # three blocks of the prompt are everybody's


def test_a_stream_tells_of_each_continuation_by_its_index_and_ends_once() -> None:
    engine = engine_of()
    engine.add(engine.prepare("a", PROMPT, replace(PARAMS, n=3, output_kind=RequestOutputKind.DELTA)))
    token_ids: dict[int, list[int]] = {0: [], 1: [], 2: []}
    ends = []
    while engine.has_unfinished_requests:
        for output in engine.step():
            ends.append(output.finished)
            for completion in output.outputs:
                assert completion.token_ids
                token_ids[completion.index] += completion.token_ids
    (whole,) = run_requests(engine_of(), [PROMPT], replace(PARAMS, n=3))
    assert [token_ids[i] for i in range(3)] == [completion.token_ids for completion in whole.outputs]
    assert ends == [False] * (len(ends) - 1) + [True]


def test_continuations_may_end_at_different_times_and_an_abort_ends_them_all() -> None:
    engine = engine_of()
    params = replace(PARAMS, n=5, ignore_eos=False, stop_token_ids=list(range(10)), max_tokens=30)
    (output,) = run_requests(engine, [PROMPT], params)
    assert len({len(completion.token_ids) for completion in output.outputs}) > 1
    engine.add(engine.prepare("b", PROMPT, replace(PARAMS, n=5)))
    engine.step()
    engine.abort("b")
    engine.check_invariants()
    assert not engine.has_unfinished_requests
    assert engine.stats().num_free_kv_blocks == engine.stats().num_kv_blocks


def test_log_probabilities_of_the_prompt_come_once_for_all_continuations() -> None:
    (output,) = run_requests(engine_of(), [PROMPT], replace(PARAMS, n=3, prompt_logprobs=1, logprobs=1))
    assert output.prompt_logprobs is not None
    assert len(output.prompt_logprobs) == len(PROMPT)
    assert all(len(completion.logprobs or ()) == PARAMS.max_tokens for completion in output.outputs)
