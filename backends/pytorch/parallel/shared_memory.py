"""A `Collective` of processes on one machine's CPUs: memory that all of them see, and pipes to wait at.

    memory   [ 2 turns | ranks | bytes ]     every rank writes its own numbers, waits, and reads everybody's

A rank tells each other one by a byte in a pipe that its numbers are there. It may write the same turn's memory again
two calls later: by then it has heard from every rank in the call between, so that all have read. Why not gloo: its sum
of a few rows, of which a step needs two a layer, took 1.5 ms where two ranks share two cores.
"""

import mmap
import os
import select
import time
from itertools import permutations
from pathlib import Path

import torch
from torch import Tensor

from backends.pytorch.parallel.division import Rank

__all__ = ["SharedMemoryCollective", "prepare_shared_memory"]

_SLOT_BYTES = 2**20  # of one rank and turn; more is exchanged in pieces
_JOIN_TIMEOUT_S = 60.0
_STUCK_TIMEOUT_S = 300.0  # for a rank that lives, but does not answer; one that ends is noticed at once
_RETRY_S = 0.005
_SPIN_S = 1e-4  # before it sleeps: a step of one token is a tenth quicker so (57 and 62 ms, Qwen2-0.5B on two cores)


def prepare_shared_memory(folder: Path, size: int) -> None:
    """Makes the files through which `size` ranks meet. Once all have joined, the folder may be removed."""
    (folder / "memory").write_bytes(bytes(2 * size * _SLOT_BYTES))  # written, so that the disk cannot be full later
    for sender, receiver in permutations(range(size), 2):
        os.mkfifo(folder / f"{sender}-{receiver}")


class SharedMemoryCollective:
    """See `Collective`. rank: of this process. folder: one that `prepare_shared_memory` has filled."""

    def __init__(self, rank: Rank, folder: Path) -> None:
        self.rank = rank
        self._folder = folder
        self._memory = torch.empty(0, dtype=torch.uint8)  # (2, size, _SLOT_BYTES)
        self._turn = 0
        self._senders: dict[int, int] = {}  # descriptor by rank
        self._receivers: dict[int, int] = {}
        self._polls: dict[int, select.poll] = {}

    def join(self) -> None:
        with (self._folder / "memory").open("r+b") as file:
            mapped = mmap.mmap(file.fileno(), 0)
        self._memory = torch.frombuffer(mapped, dtype=torch.uint8).view(2, self.rank.size, _SLOT_BYTES)
        me = self.rank.number
        others = [number for number in range(self.rank.size) if number != me]
        for other in others:
            self._receivers[other] = os.open(self._folder / f"{other}-{me}", os.O_RDONLY | os.O_NONBLOCK)
            self._polls[other] = select.poll()
            self._polls[other].register(self._receivers[other], select.POLLIN)
        deadline = time.monotonic() + _JOIN_TIMEOUT_S
        for other in others:
            self._senders[other] = _open_sender(self._folder / f"{me}-{other}", deadline)

    def all_reduce(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        for part in torch.split(x.view(-1), _SLOT_BYTES // x.element_size()):
            slots = self._slots(part)
            slots[self.rank.number].copy_(part)
            self._meet()
            torch.add(slots[0], slots[1], out=part)
            for slot in slots[2:]:
                part.add_(slot)
        return x

    def gather(self, x: Tensor, num_features: int) -> Tensor:
        shares = [Rank(number, self.rank.size).share(num_features) for number in range(self.rank.size)]
        parts = [x.new_empty(len(x) * (last - first)) for first, last in shares]  # lazily, so no memory is touched
        parts[self.rank.number] = x.contiguous().view(-1)
        at_once = _SLOT_BYTES // x.element_size()
        for start in range(0, max(map(len, parts)), at_once):
            pieces = [part[start : start + at_once] for part in parts]
            slots = self._slots(max(pieces, key=len))
            slots[self.rank.number][: len(pieces[self.rank.number])].copy_(pieces[self.rank.number])
            self._meet()
            if self.rank.number == 0:
                for piece, slot in zip(pieces[1:], slots[1:], strict=True):
                    piece.copy_(slot[: len(piece)])
        if self.rank.number:
            return x.new_empty(0, num_features)
        return torch.cat([part.view(len(x), -1) for part in parts], 1)

    def broadcast(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        for part in torch.split(x.view(-1), _SLOT_BYTES // x.element_size()):
            slots = self._slots(part)
            if self.rank.number == 0:
                slots[0].copy_(part)
            self._meet()
            if self.rank.number:
                part.copy_(slots[0])
        return x

    def abort(self) -> None:
        """Nothing to do: a rank that has ended is noticed at its pipes."""

    def leave(self) -> None:
        for descriptor in (*self._senders.values(), *self._receivers.values()):
            os.close(descriptor)
        self._senders, self._receivers, self._polls = {}, {}, {}
        self._memory = torch.empty(0, dtype=torch.uint8)

    def _slots(self, like: Tensor) -> list[Tensor]:
        """The next turn's memory of every rank, with the length and dtype of `like`."""
        memory = self._memory[self._turn, :, : len(like) * like.element_size()]
        self._turn = 1 - self._turn
        return list(memory.view(like.dtype))

    def _meet(self) -> None:
        """Returns once every rank has got here."""
        for number, sender in self._senders.items():
            try:
                os.write(sender, b".")
            except OSError as error:
                raise RuntimeError(f"rank {number} has ended") from error
        for number, receiver in self._receivers.items():
            if not _is_readable(self._polls[number]):
                raise RuntimeError(f"rank {number} does not answer")
            if not os.read(receiver, 1):
                raise RuntimeError(f"rank {number} has ended")


def _is_readable(poll: select.poll) -> bool:
    """Waits until there is something to read; False where that takes too long."""
    deadline = time.perf_counter() + _SPIN_S
    while time.perf_counter() < deadline:
        if poll.poll(0):
            return True
    return bool(poll.poll(1000 * _STUCK_TIMEOUT_S))


def _open_sender(path: Path, deadline: float) -> int:
    """A pipe's end for writing, once somebody has opened the other one."""
    while True:
        try:
            return os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if time.monotonic() > deadline:
                raise RuntimeError(f"nobody has come to the other end of {path}") from error
            time.sleep(_RETRY_S)
