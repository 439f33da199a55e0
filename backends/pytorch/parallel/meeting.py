"""Which `Collective` ranks use, made in one place for all of them."""

from pathlib import Path

import torch
import torch.distributed as dist

from backends.pytorch.parallel.collective import Collective
from backends.pytorch.parallel.division import Rank
from backends.pytorch.parallel.group_collective import GroupCollective
from backends.pytorch.parallel.nccl_collective import NcclCollective
from backends.pytorch.parallel.shared_memory import SharedMemoryCollective, prepare_shared_memory
from nanovllm.errors import ConfigError

__all__ = ["choose_collective", "make_collective", "prepare_meeting"]

_KINDS = {"cpu": ("shared_memory", "gloo"), "cuda": ("nccl",)}  # the first is the default


def choose_collective(wanted: str, device_type: str) -> str:
    """The kind for ranks on devices of that type. wanted: `TorchOptions.collective`. Raises `ConfigError`."""
    kinds = _KINDS[device_type]
    kind = kinds[0] if wanted == "auto" else wanted
    if kind not in kinds:
        allowed = " or ".join(map(repr, kinds))
        raise ConfigError(
            f"collective is {wanted!r}, but the model is divided among processes on {device_type!r}; allowed there: "
            f"{allowed}. Leave the option out, or set another device."
        )
    if kind == "nccl" and not dist.is_nccl_available():
        raise ConfigError(
            f"the model is divided among CUDA devices, which takes NCCL; torch {torch.__version__} has none. Install a "
            "build of torch for CUDA on Linux, or leave tensor_parallel_size out."
        )
    return kind


def prepare_meeting(kind: str, folder: Path, size: int) -> None:
    """Called once, before any rank makes its end. kind: from `choose_collective`. folder: empty; where ranks meet."""
    if kind == "shared_memory":
        prepare_shared_memory(folder, size)


def make_collective(kind: str, rank: Rank, folder: Path) -> Collective:
    """This rank's end, which has not joined yet."""
    if kind == "nccl":
        return NcclCollective(rank, folder, torch.device("cuda", rank.number))
    return GroupCollective(rank, folder) if kind == "gloo" else SharedMemoryCollective(rank, folder)
