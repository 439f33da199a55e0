"""Which device a model, or a rank's part of one, runs on.

In: what the user asked for. Out: a torch device, checked against what is there.
"""

import torch

from backends.pytorch.options import TorchOptions
from backends.pytorch.parallel.division import Rank
from nanovllm.errors import ConfigError

__all__ = ["choose_device", "num_cuda_devices"]

_WHOLE = Rank(0, 1)


def num_cuda_devices() -> int:
    """Those that torch sees; 0 where it is not built for CUDA."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def choose_device(options: TorchOptions, num_devices: int, rank: Rank = _WHOLE) -> torch.device:
    """num_devices: CUDA devices. rank: whose part of a model runs there; each of several ranks has a CUDA device of its
    own. Raises `ConfigError` for a device that is not there, and for options that the device does not honour."""
    wanted = options.device
    if wanted == "auto":
        wanted = "cuda" if num_devices else "cpu"
    kind, _, index = wanted.partition(":")
    if kind == "cpu":
        if options.gpu_memory_utilization is not None:
            raise ConfigError(
                f"gpu_memory_utilization is {options.gpu_memory_utilization}, but the model runs on the CPU. Set "
                "kv_cache_memory_bytes there, or leave it out."
            )
        return torch.device("cpu")
    if rank.size > 1:
        _check_several(options, index, num_devices, rank.size)
    elif int(index or 0) >= num_devices:
        raise ConfigError(
            f"device is {options.device!r}, but torch {torch.__version__} sees {num_devices} CUDA devices. Take one of "
            "these, counted from 0; install a build of torch for CUDA; or run on the CPU (device='cpu')."
        )
    if options.quantization is not None:
        raise ConfigError(
            f"quantization is {options.quantization!r}, whose operators run on the CPU only. Leave it out, or run on "
            "the CPU (device='cpu')."
        )
    return torch.device("cuda", rank.number if rank.size > 1 else int(index or 0))


def _check_several(options: TorchOptions, index: str, num_devices: int, size: int) -> None:
    if index:
        raise ConfigError(
            f"tensor_parallel_size is {size}, and the device {options.device!r}; it takes the first {size} CUDA "
            "devices. Set device='cuda', and CUDA_VISIBLE_DEVICES to choose which these are."
        )
    if num_devices < size:
        raise ConfigError(
            f"tensor_parallel_size is {size}, which takes as many CUDA devices, but torch {torch.__version__} sees "
            f"{num_devices}. Lower it; install a build of torch for CUDA; or run on the CPU (device='cpu')."
        )
