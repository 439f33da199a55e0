"""Time of a decode step with and without the next one under way, on a device that takes a given time for a step.

    python benchmarks/overlap.py [--num-seqs 256] [--context 200] [--device-ms 0 1 2 4] [--steps 100] [--rounds 5]

The device is a thread that sleeps, and answers with tokens that depend on nothing but their position. Without overlap a
step takes the device's time and the host's; with it, about the longer of the two. Printed: medians over rounds, which
take turns, in milliseconds a step.
"""

import argparse
import random
import statistics
import time
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise

from nanovllm import RequestOutputKind, SamplingParams
from nanovllm.engine.engine import LLMEngine
from nanovllm.plugins import Batch, ModelInfo, ModelRunner, PendingStep, StepOutput
from nanovllm.testing import make_engine

VOCAB_SIZE = 1000


class SleepingRunner(ModelRunner):
    """A device that takes `step_s` seconds for each step, one after the other."""

    overlaps = True

    def __init__(self, step_s: float, max_model_len: int) -> None:
        self.model_info = ModelInfo(
            model_name="sleep",
            model_type="sleep",
            vocab_size=VOCAB_SIZE,
            eos_token_ids=(0,),
            hidden_size=1,
            num_layers=1,
            num_heads=1,
            num_kv_heads=1,
            head_dim=1,
            max_model_len=max_model_len,
        )
        self._step_s = step_s
        self._device = ThreadPoolExecutor(max_workers=1)

    def kv_bytes_per_block(self, block_size: int) -> int:
        return 0

    def allocate_kv_cache(self, num_blocks: int, block_size: int) -> None:
        pass

    def submit(self, batch: Batch) -> PendingStep:
        future: Future[StepOutput] = self._device.submit(self.execute, batch)
        return future

    def execute(self, batch: Batch) -> StepOutput:
        if self._step_s:
            time.sleep(self._step_s)
        token_ids = (batch.sampling.positions * 7919 % VOCAB_SIZE).tolist()
        return StepOutput([token_ids[a:b] for a, b in pairwise(batch.logits_start.tolist())])

    def close(self) -> None:
        self._device.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-seqs", type=int, default=256)
    parser.add_argument("--context", type=int, default=200, help="prompt tokens of each sequence")
    parser.add_argument("--device-ms", type=float, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"{options.num_seqs} sequences, context {options.context}, {options.rounds} rounds of {options.steps} steps")
    print("device  waiting  overlapping  (ms a step)")
    for device_ms in options.device_ms:
        engines = {overlap: _decoding(options, device_ms / 1e3, overlap=overlap) for overlap in (False, True)}
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(options.rounds):
            for overlap, engine in engines.items():
                seconds[overlap].append(_step_s(engine, options.steps))
        waiting, overlapping = (statistics.median(seconds[overlap]) * 1e3 for overlap in (False, True))
        print(f"{device_ms:6.2f}  {waiting:7.3f}  {overlapping:11.3f}")
        for engine in engines.values():
            engine.close()


def _decoding(options: argparse.Namespace, step_s: float, *, overlap: bool) -> LLMEngine:
    """An engine in which every sequence decodes, and will for all rounds."""
    num_steps = options.steps * options.rounds + 64
    engine = make_engine(
        SleepingRunner(step_s, options.context + num_steps),
        max_num_seqs=options.num_seqs,
        max_num_batched_tokens=8192,
        async_scheduling=overlap,
    )
    randomness = random.Random(0)
    kind = RequestOutputKind.FINAL_ONLY  # the text is made all the same
    params = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True, output_kind=kind)
    for i in range(options.num_seqs):
        prompt = [randomness.randrange(VOCAB_SIZE) for _ in range(options.context)]
        request = engine.prepare(str(i), prompt, params)
        engine.add(request)
    while engine.stats().decode_tokens < options.num_seqs * 10:
        engine.step()
    return engine


def _step_s(engine: LLMEngine, num_steps: int) -> float:
    start = time.perf_counter()
    for _ in range(num_steps):
        engine.step()
    return (time.perf_counter() - start) / num_steps


if __name__ == "__main__":
    main()
