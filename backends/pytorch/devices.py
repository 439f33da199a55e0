"""Which device a model runs on. In: what the user asked for. Out: a torch device, checked against what is there."""

import torch

from backends.pytorch.options import TorchOptions
from nanovllm.errors import ConfigError

__all__ = ["choose_device"]


def choose_device(options: TorchOptions) -> torch.device:
    """Raises `ConfigError` for a device that is not there, and for options that the device does not honour."""
    num_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
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
    if int(index or 0) >= num_devices:
        raise ConfigError(
            f"device is {options.device!r}, but torch {torch.__version__} sees {num_devices} CUDA devices. Take one of "
            "these, counted from 0; install a build of torch for CUDA; or run on the CPU (device='cpu')."
        )
    if options.quantization is not None:
        raise ConfigError(
            f"quantization is {options.quantization!r}, whose operators run on the CPU only. Leave it out, or run on "
            "the CPU (device='cpu')."
        )
    return torch.device("cuda", int(index or 0))
