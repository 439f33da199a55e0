"""Opening an exported folder in ONNX Runtime, with what can be wrong found before native code meets it."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from backends.ort.options import OrtOptions
from nanovllm.errors import ModelError
from nanovllm.model_info import KVCacheInfo, ModelInfo

if TYPE_CHECKING:
    from onnxruntime import InferenceSession  # type: ignore[import-untyped, unused-ignore]

__all__ = ["MODEL_FILE", "check_files", "open_session"]

MODEL_FILE = "model.onnx"
_LOG_FATAL_ONLY = 4  # every error reaches us as an exception


def open_session(folder: Path, info: ModelInfo, *, num_threads: int, options: OrtOptions) -> "InferenceSession":
    """The session of `folder`, whose model_info.json is `info`. Raises `ModelError` naming the file and the fix."""
    _check_kind(folder, info)
    check_files(folder, info)
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # official wheels send usage data where it is not set
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = num_threads
    settings.inter_op_num_threads = 1
    settings.enable_mem_pattern = False  # shapes differ from step to step
    settings.log_severity_level = _LOG_FATAL_ONLY
    settings.add_session_config_entry("session.intra_op.allow_spinning", str(int(options.intra_op_spinning)))
    settings.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    path = folder / MODEL_FILE
    try:
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class
        raise ModelError(f"ONNX Runtime cannot load {path}: {error}. Export the model again.") from error
    _check_interface(path, info, session)
    return session


def check_files(folder: Path, info: ModelInfo) -> None:
    """Raises `ModelError` where a file is missing or not of the size that it was written with.

    ONNX Runtime maps the weights into memory, so a file cut short could end the process instead of raising.
    """
    if not (folder / MODEL_FILE).is_file():
        raise ModelError(f"{folder / MODEL_FILE} does not exist. Export the model again.")
    for weights in info.weights:
        path = folder / weights.file
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            raise ModelError(f"{path} does not exist. Copy the whole folder, or export the model again.")
        if size != weights.num_bytes:
            raise ModelError(
                f"{path} has {size} bytes, but {weights.num_bytes} were written. Copy it, or export the model, again."
            )


def _check_kind(folder: Path, info: ModelInfo) -> None:
    if info.device != "cpu":
        raise ModelError(f"{folder} was exported for device {info.device!r}; this backend runs 'cpu'. Export it again.")
    expected = KVCacheInfo(block_size=info.kv_cache.block_size)
    if info.kv_cache != expected:
        raise ModelError(
            f"{folder} keeps its KV cache as {info.kv_cache.layout!r} of {info.kv_cache.dtype}; this backend takes "
            f"{expected.layout!r} of {expected.dtype}. Export the model again."
        )


def _check_interface(path: Path, info: ModelInfo, session: "InferenceSession") -> None:
    """The graph's inputs and outputs are those that model_info.json lists, which the runner relies on."""
    for what, said, found in (
        ("inputs", info.inputs, session.get_inputs()),
        ("outputs", info.outputs, session.get_outputs()),
    ):
        if {tensor.name for tensor in said} != {tensor.name for tensor in found}:
            raise ModelError(f"{path} and model_info.json beside it disagree on the {what}. Export the model again.")
