"""Small parts for tests: an engine around any runner, a tokenizer of numbers, greedy runs."""

from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import numpy.typing as npt

from nanovllm.batch import SAMPLING_ROW, Batch, SamplingBatch
from nanovllm.config import EngineConfig
from nanovllm.engine.build import assemble_engine
from nanovllm.engine.engine import LLMEngine
from nanovllm.outputs import RequestOutput
from nanovllm.plugins.interfaces import LogitsModelRunner, ModelRunner, Tokenizer
from nanovllm.plugins.records import KVMode
from nanovllm.sampling_params import RequestOutputKind, SamplingParams

__all__ = ["NumberTokenizer", "make_engine", "run_requests", "teacher_forced_logits"]

_TEST_MEMORY_BYTES = 2**30


class NumberTokenizer(Tokenizer):
    """Text is token ids in decimal, separated by blanks: "3 14 15"."""

    special_token_ids: frozenset[int] = frozenset()

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, token_ids: Seq[int], *, skip_special_tokens: bool = True) -> str:
        return "".join(f"{token_id} " for token_id in token_ids)

    def token_bytes(self) -> list[bytes]:
        return [f"{token_id} ".encode() for token_id in range(self.vocab_size)]


def make_engine(
    runner: ModelRunner, *, tokenizer: Tokenizer | None = None, kv: KVMode = "paged", **options: Any
) -> LLMEngine:
    """An engine around a fresh runner, whose KV cache is allocated here. `options` are those of `EngineConfig`."""
    config = EngineConfig.from_options(options)
    tokenizer = tokenizer or NumberTokenizer(runner.model_info.vocab_size)
    return assemble_engine(runner, tokenizer, config, kv, free_memory_bytes=_TEST_MEMORY_BYTES)


def run_requests(
    engine: LLMEngine, prompts: Seq[Seq[int]], params: SamplingParams | Seq[SamplingParams]
) -> list[RequestOutput]:
    """Runs all prompts to their end, checking the engine's books after every step; outputs in the prompts' order."""
    each = [params] * len(prompts) if isinstance(params, SamplingParams) else params
    for i, (prompt, param) in enumerate(zip(prompts, each, strict=True)):
        request = engine.prepare(str(i), prompt, param)
        request.output_kind = RequestOutputKind.FINAL_ONLY
        engine.add(request)
    outputs: dict[str, RequestOutput] = {}
    while engine.has_unfinished_requests:
        outputs.update((output.request_id, output) for output in engine.step())
        engine.check_invariants()
    return [outputs[str(i)] for i in range(len(prompts))]


def teacher_forced_logits(
    runner: LogitsModelRunner, token_ids: Seq[int], *, block_size: int = 32
) -> npt.NDArray[np.float32]:
    """Logits after every one of `token_ids`, float32 (len(token_ids), vocab_size), in one step of a fresh runner.

    Allocates the runner's KV cache for this one sequence.
    """
    n = len(token_ids)
    num_blocks = -(-n // block_size)
    runner.allocate_kv_cache(num_blocks, block_size)
    positions = np.arange(n)
    batch = Batch(
        seq_ids=[0],
        released_seq_ids=[],
        token_ids=np.array(token_ids, np.int64),
        positions=positions,
        query_start=np.array([0, n], np.int32),
        context_lens=np.zeros(1, np.int32),
        block_tables=np.arange(num_blocks, dtype=np.int32)[None],
        slot_mapping=positions.astype(np.int32),
        logits_indices=positions.astype(np.int32),
        logits_start=np.array([0, n], np.int32),
        adapter_ids=np.zeros(1, np.int32),
        sampling=SamplingBatch(np.zeros(n, SAMPLING_ROW), positions + 1),
    )
    return runner.forward(batch).copy()
