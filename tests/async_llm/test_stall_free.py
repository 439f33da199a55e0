"""A long prompt that arrives among running sequences makes none of them wait longer than the token budget implies."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from backends.mock.runner import MockRunner
from backends.mock.simple_bpe import SimpleBPE
from nanovllm import EngineConfig, RequestOutputKind, SamplingParams
from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.engine import LLMEngine
from nanovllm.plugins import Batch, StepOutput

NUM_BLOCKS = 2048
BLOCK_SIZE = 16
SECONDS_PER_TOKEN = 0.001
DECODE = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True, output_kind=RequestOutputKind.DELTA)


class TimedRunner(MockRunner):
    """A step takes as long as it has tokens, by a clock of its own."""

    def __init__(self) -> None:
        super().__init__(max_model_len=4200, check=False)
        self.now_s = 0.0

    def clock(self) -> float:
        return self.now_s

    def execute(self, batch: Batch) -> StepOutput:
        self.now_s += batch.num_tokens * SECONDS_PER_TOKEN
        return super().execute(batch)


def longest_gap_s(num_decoding: int, arrivals: dict[int, int], **options: object) -> tuple[float, int]:
    """Runs sequences that decode while longer prompts arrive; returns the longest time between two tokens of one of the
    former, and the most steps that one of them sat out.

    arrivals: length of the prompt that arrives before a step.
    """
    runner = TimedRunner()
    runner.allocate_kv_cache(NUM_BLOCKS, BLOCK_SIZE)
    config = EngineConfig.from_options({"max_num_seqs": 32, **options})
    engine = LLMEngine(runner, SimpleBPE(), BlockManager(NUM_BLOCKS, BLOCK_SIZE), config, 4200, clock=runner.clock)
    for i in range(num_decoding):
        engine.add(engine.prepare(f"decode {i}", [i + 1] * 20, DECODE))
    times: dict[str, list[tuple[float, int]]] = {}
    step = 0
    while engine.has_unfinished_requests:
        if step in arrivals:
            engine.add(engine.prepare(f"long {step}", [step + 1] * arrivals[step], DECODE))
        for output in engine.step():
            times.setdefault(output.request_id, []).append((runner.now_s, step))
        step += 1
    assert engine.stats().num_preemptions == 0
    gaps = [
        (b[0] - a[0], b[1] - a[1])
        for name, seen in times.items()
        if name.startswith("decode")
        for a, b in pairwise(seen)
    ]
    return max(gap for gap, _ in gaps), max(steps for _, steps in gaps)


@given(
    st.integers(1, 16),
    st.dictionaries(st.integers(0, 40), st.integers(1, 4000), max_size=3),
    st.sampled_from([32, 100, 256, 512]),
)
@settings(max_examples=15)
def test_no_token_waits_longer_than_a_full_step_takes(num_decoding: int, arrivals: dict[int, int], budget: int) -> None:
    gap_s, num_steps = longest_gap_s(num_decoding, arrivals, max_num_batched_tokens=budget)
    assert gap_s <= budget * SECONDS_PER_TOKEN + 1e-9
    assert num_steps == 1


def test_without_chunks_a_prompt_of_4000_tokens_stalls_all_and_with_them_it_does_not() -> None:
    whole, _ = longest_gap_s(16, {30: 4000}, max_num_batched_tokens=4200, enable_chunked_prefill=False)
    chunked, _ = longest_gap_s(16, {30: 4000}, max_num_batched_tokens=256)
    assert whole >= 4000 * SECONDS_PER_TOKEN
    assert chunked <= 256 * SECONDS_PER_TOKEN + 1e-9
