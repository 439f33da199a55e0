"""Sliding windows of the Qwen families, which most of their configs describe and switch off."""

from nanovllm.architectures.config_fields import Config, count, flag
from nanovllm.architectures.errors import ArchitectureError
from nanovllm.architectures.geometry import Windows, layer_windows

__all__ = ["qwen_windows"]


def qwen_windows(config: Config, num_layers: int, *, first: int | None = None) -> Windows:
    """The window of every layer. Without layer_types the layers from max_window_layers on have one.

    first: the first layer with a window, where the family does not read max_window_layers. Raises `ArchitectureError`.
    """
    types = config.get("layer_types")
    if not flag(config, "use_sliding_window", False):
        if types and "sliding_attention" in types:
            raise ArchitectureError("layer_types names sliding_attention, but use_sliding_window is off.")
        return (None,) * num_layers
    if "sliding_window" not in config:
        raise ArchitectureError("use_sliding_window is on, but sliding_window, its size in tokens, is missing.")
    if first is None:
        first = count(config, "max_window_layers", 28, minimum=0)
    return layer_windows(config, num_layers, full=range(first))
