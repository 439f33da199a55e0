"""What a runner promises of the step contract, and that a runner of plain logits keeps it with any `draw`."""

from typing import Any

import numpy as np
import numpy.typing as npt

from backends.mock.runner import MockRunner
from nanovllm import SamplingParams
from nanovllm.plugins import LogitsModelRunner, ModelRunner
from nanovllm.testing import make_engine, run_requests

VOCAB_SIZE = 64


class LastIdRunner(MockRunner):
    """Draws the last id of the row that it is given, whatever the logits."""

    def draw(
        self, logits: npt.NDArray[np.float32], rows: npt.NDArray[np.void], uniforms: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.int64]:
        return np.full(len(logits), logits.shape[1] - 1)


def tokens(runner: ModelRunner, **options: Any) -> list[int]:
    params = SamplingParams(**{"temperature": 0, "max_tokens": 6, "ignore_eos": True, **options})
    return run_requests(make_engine(runner), [[1, 2, 3]], params)[0].outputs[0].token_ids


def test_a_runner_honours_nothing_unless_it_says_so_and_one_of_plain_logits_everything() -> None:
    assert ModelRunner.honours == frozenset()
    assert LogitsModelRunner.honours == {"edits", "logprobs", "prompt_logprobs", "drafts"}


def test_a_runner_may_draw_by_itself() -> None:
    assert tokens(LastIdRunner(vocab_size=VOCAB_SIZE, max_model_len=64)) == [VOCAB_SIZE - 1] * 6
    runner = LastIdRunner(vocab_size=VOCAB_SIZE, max_model_len=64)
    assert tokens(runner, allowed_token_ids=[5, 9]) == [9] * 6


def test_the_mock_that_needs_no_logits_honours_edits_and_log_probabilities_all_the_same() -> None:
    def unchecked() -> MockRunner:
        return MockRunner(vocab_size=VOCAB_SIZE, max_model_len=64, check=False)

    assert set(tokens(unchecked(), allowed_token_ids=[5, 9])) <= {5, 9}
    output = run_requests(make_engine(unchecked()), [[1, 2, 3]], SamplingParams(temperature=0, logprobs=1))[0]
    assert output.outputs[0].logprobs is not None
    output = run_requests(make_engine(unchecked()), [[1, 2, 3]], SamplingParams(temperature=0, prompt_logprobs=1))[0]
    assert output.prompt_logprobs is not None
    assert len(output.prompt_logprobs) == 3
