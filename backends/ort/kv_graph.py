"""An exported folder with its KV cache in another dtype than it was exported with: the graph and its description.

In: the path of model.onnx, whose weights lie in a file of their own. Out: the rewritten graph in memory, which refers
to the same file. Imports onnx and the exporter only where the dtype is not float32.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from nanovllm.errors import ConfigError, ModelError
from nanovllm.model_info import ModelInfo

if TYPE_CHECKING:
    from export.paged_attention import KVDType

__all__ = ["graph_with_kv_dtype", "info_with_kv_dtype"]


def graph_with_kv_dtype(path: Path, kv_dtype: "KVDType") -> bytes | None:
    """The graph, serialized; None where the file's own is it, which is float32.

    Raises `ConfigError` where onnx is missing and `ModelError` where `path` is broken.
    """
    if kv_dtype == "float32":
        return None
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"kv_cache_dtype {kv_dtype!r} needs the onnx package: pip install 'nanovllm[cpu]', or leave it out."
        ) from error

    from export.kv_cache import set_kv_cache_dtype

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # of the file system or of protobuf, whose classes have no types
        raise ModelError(f"{path} cannot be read as an ONNX graph: {error}. Export the model again.") from error
    set_kv_cache_dtype(model, kv_dtype)
    return bytes(model.SerializeToString())


def info_with_kv_dtype(info: ModelInfo, kv_dtype: "KVDType") -> ModelInfo:
    """What model_info.json would say of that graph."""
    if kv_dtype == "float32":
        return info
    from export.kv_cache import kv_cache_info

    return kv_cache_info(info, kv_dtype)
