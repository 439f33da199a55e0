"""What the engine's process and the other ranks say to each other, as bytes.

A step is one message of raw arrays, because there is one for every step; all else is pickled, between processes of
one program that nobody else can write to.
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backends.pytorch.parallel.division import Rank
from backends.pytorch.runner import TorchRunner
from nanovllm.batch import SAMPLING_ROW, Batch, SamplingBatch
from nanovllm.errors import NanoVLLMError

__all__ = [
    "Allocate",
    "Answer",
    "Command",
    "Join",
    "Load",
    "LoadPart",
    "MeasureMemory",
    "Step",
    "WarmUp",
    "read_answer",
    "read_command",
    "write",
]

LoadPart = Callable[..., TorchRunner]
"""Loads a rank's part of a model when it is called with `collective`, that rank's end. Pickled, so made of functions
that a module has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The first command: what to load, and for whom. collective: its kind. rendezvous: a folder where ranks meet."""

    rank: Rank
    rendezvous: Path
    collective: str
    load: LoadPart


@dataclass(frozen=True, slots=True)
class Join:
    """Meet the other ranks."""


@dataclass(frozen=True, slots=True)
class Allocate:
    """Allocate the pools of the KV cache."""

    num_blocks: int
    block_size: int


@dataclass(frozen=True, slots=True)
class MeasureMemory:
    """Find out what the KV cache may take, together with the other ranks. See `ModelRunner.kv_memory_bytes`."""


@dataclass(frozen=True, slots=True)
class WarmUp:
    """Prepare for steps, together with the other ranks."""


@dataclass(frozen=True, slots=True)
class Step:
    """Run a step. It is answered only where it fails."""

    batch: Batch


Command = Load | Join | Allocate | MeasureMemory | WarmUp | Step


@dataclass(frozen=True, slots=True)
class Answer:
    """error: None where it went well. is_joint: whether it happened where other ranks may wait for this one now.
    memory_bytes: that the KV cache may take; None where nobody asked or knows."""

    error: NanoVLLMError | None = None
    is_joint: bool = False
    memory_bytes: int | None = None


_LONG = ("token_ids", "positions")  # int64; the other arrays are int32
_SHORT = ("query_start", "context_lens", "slot_mapping", "logits_indices", "logits_start", "adapter_ids")
_STEP, _PICKLED = b"step    ", b"pickled "  # 8 bytes, so that the arrays behind them are aligned
_TAG = 8


def write(message: Command | Answer) -> bytes:
    if not isinstance(message, Step):
        return _PICKLED + pickle.dumps(message)
    batch = message.batch
    arrays = [np.asarray(ids, np.int64) for ids in (batch.seq_ids, batch.released_seq_ids)]
    arrays += [np.asarray(getattr(batch, name), np.int64) for name in _LONG]
    arrays += [np.asarray(getattr(batch, name), np.int32) for name in (*_SHORT, "block_tables")]
    sizes = np.array([array.size for array in arrays], np.int64)
    return b"".join([_STEP, sizes.tobytes(), *[array.tobytes() for array in arrays]])


def read_command(message: bytes) -> Command:
    """A step's batch has nothing to sample with: only rank 0 samples."""
    if message[:_TAG] == _STEP:
        return Step(_read_batch(message))
    command: Command = pickle.loads(message[_TAG:])
    return command


def read_answer(message: bytes) -> Answer:
    answer: Answer = pickle.loads(message[_TAG:])
    return answer


def _read_batch(message: bytes) -> Batch:
    num_arrays = 2 + len(_LONG) + len(_SHORT) + 1
    sizes = np.frombuffer(message, np.int64, num_arrays, _TAG).tolist()
    place = _TAG + 8 * num_arrays
    arrays = []
    for index, size in enumerate(sizes):
        dtype = np.dtype(np.int64 if index < 2 + len(_LONG) else np.int32)
        arrays.append(np.frombuffer(message, dtype, size, place))
        place += size * dtype.itemsize
    seq_ids, released, token_ids, positions, *short, block_tables = arrays
    num_logits = sizes[2 + len(_LONG) + _SHORT.index("logits_indices")]
    return Batch(
        seq_ids=seq_ids.tolist(),
        released_seq_ids=released.tolist(),
        token_ids=token_ids,
        positions=positions,
        block_tables=block_tables.reshape(len(seq_ids), -1),
        sampling=SamplingBatch(np.zeros(num_logits, SAMPLING_ROW), np.zeros(num_logits, np.int64)),
        **dict(zip(_SHORT, short, strict=True)),
    )
