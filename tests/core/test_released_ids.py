"""A runner that keeps state per sequence hears of every release exactly once, also when a step fails."""

from backends.mock.runner import MockRunner
from nanovllm import SamplingParams
from nanovllm.batch import Batch, StepOutput
from nanovllm.testing import make_engine


class ForgetfulRunner(MockRunner):
    """Fails on the token 99, before it has looked at what was released; else notes it."""

    def __init__(self) -> None:
        super().__init__(vocab_size=101)
        self.released: list[int] = []

    def execute(self, batch: Batch) -> StepOutput:
        if 99 in batch.token_ids:
            raise RuntimeError("out of order")
        self.released.extend(batch.released_seq_ids)
        return super().execute(batch)


def test_what_a_failed_step_was_to_release_is_released_by_the_next() -> None:
    runner = ForgetfulRunner()
    engine = make_engine(runner)
    params = SamplingParams(temperature=0, max_tokens=1)

    def run(name: str, prompt: list[int]) -> int:
        request = engine.prepare(name, prompt, params)
        engine.add(request)
        engine.step()
        return request.completions[0].seq.seq_id

    first = run("first", [1, 2, 3])
    failed = run("failing", [99])
    run("last", [4, 5])
    assert runner.released == [first, failed]
    engine.check_invariants()


def test_numpy_integers_are_token_ids() -> None:
    import numpy as np

    engine = make_engine(MockRunner(vocab_size=101))
    assert engine.prepare("a", list(np.array([1, 2])), SamplingParams()).prompt_token_ids == [1, 2]
