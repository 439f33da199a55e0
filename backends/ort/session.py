"""Opening graphs in ONNX Runtime; of our own exports, what can be wrong is found before native code meets it."""

import logging
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from backends.ort.kernels.library import KernelStatus, kernel_status
from backends.ort.kv_graph import graph_with_kv_dtype, info_with_kv_dtype
from backends.ort.options import OrtOptions
from nanovllm.errors import ModelError
from nanovllm.model_info import KVCacheInfo, ModelInfo

if TYPE_CHECKING:
    from onnxruntime import InferenceSession  # type: ignore[import-untyped, unused-ignore]

    from export.paged_attention import KVDType

__all__ = ["MODEL_FILE", "check_files", "int8_sums_saturate", "open_graph", "open_session", "open_with_kernels"]

MODEL_FILE = "model.onnx"
_LOG_FATAL_ONLY = 4  # every error reaches us as an exception

logger = logging.getLogger("nanovllm")


def open_with_kernels(
    folder: Path, info: ModelInfo, *, num_threads: int, options: OrtOptions, kv_dtype: "KVDType" = "float32"
) -> "tuple[InferenceSession, KernelStatus]":
    """The session of `folder` with the compiled kernels, where they can be used, else without; and which of the two.

    A library that does not go with the model costs speed and a warning, not the model. kv_dtype: what the KV cache is
    kept in. Raises as `open_session`.
    """

    def opened(kernels: Path | None) -> "InferenceSession":
        return open_session(folder, info, num_threads=num_threads, options=options, kernels=kernels, kv_dtype=kv_dtype)

    status = kernel_status()
    if status.library is not None:
        try:
            return opened(status.library), status
        except ModelError as error:
            status = KernelStatus(None, f"the model does not load with {status.library}: {error}", failure=True)
    session = opened(None)
    if status.failure:
        logger.warning("Without compiled kernels, so slower: %s", status.reason)
    return session, status


def open_session(
    folder: Path,
    info: ModelInfo,
    *,
    num_threads: int,
    options: OrtOptions,
    kernels: Path | None = None,
    kv_dtype: "KVDType" = "float32",
) -> "InferenceSession":
    """The session of `folder`, whose model_info.json is `info`. Raises `ModelError` naming the file and the fix.

    kernels: a library of compiled operators to use in place of the bodies of the same names. kv_dtype: what the KV
    cache is kept in; where that is not float32, the graph is rewritten in memory, which needs onnx (`ConfigError`).
    """
    _check_kind(folder, info)
    check_files(folder, info)
    path = folder / MODEL_FILE
    graph = graph_with_kv_dtype(path, kv_dtype)
    session = open_graph(path, num_threads=num_threads, options=options, kernels=kernels, graph=graph)
    _check_interface(path, info_with_kv_dtype(info, kv_dtype), session)
    return session


def open_graph(
    path: Path, *, num_threads: int, options: OrtOptions, kernels: Path | None = None, graph: bytes | None = None
) -> "InferenceSession":
    """The session of one ONNX file. Raises `ModelError` naming it. kernels: as for `open_session`.

    graph: what to run in place of the file's graph, with weights out of the files beside it.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # official wheels send usage data where it is not set
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = num_threads
    settings.inter_op_num_threads = 1
    settings.enable_mem_pattern = False  # shapes differ from step to step
    settings.log_severity_level = _LOG_FATAL_ONLY
    settings.add_session_config_entry("session.intra_op.allow_spinning", str(int(options.intra_op_spinning)))
    settings.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    saturate = int8_sums_saturate(platform.machine(), _cpuinfo())
    settings.add_session_config_entry("session.x64quantprecision", str(int(saturate)))
    try:
        if kernels is not None:
            settings.register_custom_ops_library(str(kernels))
        if graph is not None:
            settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        model = str(path) if graph is None else graph
        return onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class
        raise ModelError(f"ONNX Runtime cannot load {path}: {error}. Export the model again.") from error


def int8_sums_saturate(machine: str, cpuinfo: str | None) -> bool:
    """Whether a processor's sums of uint8 times int8 saturate: x64 without VNNI. True where it cannot be told.

    There ONNX Runtime has to multiply in another way, which takes twice as long, also where it would not be needed.
    machine: as `platform.machine()` says it. cpuinfo: the text of Linux's /proc/cpuinfo, None where there is none.
    """
    if machine.lower() not in ("x86_64", "amd64"):
        return False
    flags = next((line.split() for line in (cpuinfo or "").splitlines() if line.startswith("flags")), [])
    return not {"avx512_vnni", "avx_vnni"} & set(flags)


def _cpuinfo() -> str | None:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return None


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
