"""Which `Collective` ranks use, made in one place for all of them."""

from pathlib import Path

from backends.pytorch.parallel.collective import Collective
from backends.pytorch.parallel.division import Rank
from backends.pytorch.parallel.group_collective import GroupCollective
from backends.pytorch.parallel.shared_memory import SharedMemoryCollective, prepare_shared_memory

__all__ = ["make_collective", "prepare_meeting"]


def prepare_meeting(kind: str, folder: Path, size: int) -> None:
    """Called once, before any rank makes its end. kind: `TorchOptions.collective`. folder: empty; where ranks meet."""
    if kind != "gloo":
        prepare_shared_memory(folder, size)


def make_collective(kind: str, rank: Rank, folder: Path) -> Collective:
    """This rank's end, which has not joined yet."""
    return GroupCollective(rank, folder) if kind == "gloo" else SharedMemoryCollective(rank, folder)
