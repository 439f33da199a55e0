"""The plugin "onnxruntime": serves exported folders, ours and other tools', and checkpoints by exporting them first.

Importing this module loads neither onnxruntime nor the exporter; the factory does.
"""

import json
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from nanovllm.architectures import SUPPORTED_MODEL_TYPES
from nanovllm.checkpoint import CONFIG_FILE, weight_files
from nanovllm.config import EngineConfig, KVCacheDtype
from nanovllm.errors import CheckpointError, ConfigError, ModelError
from nanovllm.model_info import MODEL_INFO_FILE, ModelInfo
from nanovllm.plugins import ModelRunner, ModelRunnerPlugin, ModelSource, Verdict, hookimpl

if TYPE_CHECKING:
    from backends.ort.dense_folder import DenseFolder
    from backends.ort.options import OrtOptions

__all__ = ["nanovllm_model_runners"]


@hookimpl
def nanovllm_model_runners() -> Iterable[ModelRunnerPlugin]:
    return [
        ModelRunnerPlugin(
            name="onnxruntime", factory=_make_runner, can_load=_can_load, priority=10, status=_kernels_in_words
        )
    ]


def _kernels_in_words() -> str:
    from backends.ort.kernels.library import kernel_status

    return f"compiled kernels: {kernel_status().reason}"


def _can_load(source: ModelSource) -> Verdict:
    folder = source.folder
    if folder is None:
        return Verdict(False, "it needs a model folder")
    if find_spec("onnxruntime") is None:
        return Verdict(False, "onnxruntime is not installed: pip install 'nanovllm[cpu]'")
    if _is_export(folder):
        return Verdict(True, "an exported model")
    try:
        dense = _dense_folder(folder)
    except ModelError as error:
        return Verdict(False, str(error))
    if dense is not None:
        return Verdict(True, f"a decoder as {dense.layout} lays it out, {dense.graph.relative_to(folder)}")
    return _can_export(folder)


def _is_export(folder: Path) -> bool:
    from backends.ort.session import MODEL_FILE

    return (folder / MODEL_INFO_FILE).is_file() and (folder / MODEL_FILE).is_file()


def _dense_folder(folder: Path, model_file: str | None = None) -> "DenseFolder | None":
    """A decoder that another tool exported. A subfolder onnx/ beside a checkpoint that we can export ourselves is taken
    only where the user names a file of it: our own graph has a paged cache."""
    from backends.ort.dense_folder import find_dense_folder

    dense = find_dense_folder(folder, model_file)
    if dense is not None and dense.graph.parent != folder and model_file is None and _can_export(folder).loadable:
        return None
    return dense


def _can_export(folder: Path) -> Verdict:
    if not (folder / CONFIG_FILE).is_file():
        return Verdict(False, f"neither {MODEL_INFO_FILE} with model.onnx nor {CONFIG_FILE} is in {folder}")
    try:
        model_type = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")).get("model_type")
        weight_files(folder)
    except (OSError, ValueError, AttributeError) as error:
        return Verdict(False, f"{folder / CONFIG_FILE} cannot be read: {error}")
    except CheckpointError as error:
        return Verdict(False, str(error))
    if model_type not in SUPPORTED_MODEL_TYPES:
        supported = ", ".join(SUPPORTED_MODEL_TYPES)
        return Verdict(
            False,
            f"model_type {model_type!r} cannot be exported; supported: {supported}. Another may be exported with "
            "`python -m export --exporter optimum`",
        )
    if find_spec("onnx") is None:
        return Verdict(False, "onnx is not installed, which exporting needs: pip install 'nanovllm[cpu]'")
    return Verdict(True, f"a {model_type} checkpoint, exported on first use")


def _make_runner(source: ModelSource, config: EngineConfig) -> ModelRunner:
    from backends.ort.options import OrtOptions
    from nanovllm.resources import num_physical_cores

    options = OrtOptions.from_options(config.backend_options)
    num_threads = config.num_threads or num_physical_cores()
    folder = source.folder
    if folder is None:
        raise ModelError(f"backend 'onnxruntime' needs a model folder; {source.name!r} is none.")
    dense = None if _is_export(folder) else _dense_folder(folder, options.model_file)
    if dense is not None:
        return _make_dense_runner(dense, num_threads, options)
    if options.model_file is not None:
        raise ConfigError(
            f"option 'model_file' picks one of several ONNX files that another tool exported; {folder} is no such "
            "folder. Leave it out."
        )
    return _make_paged_runner(folder, num_threads, options, config.kv_cache_dtype)


def _make_paged_runner(
    folder: Path, num_threads: int, options: "OrtOptions", kv_cache_dtype: KVCacheDtype
) -> ModelRunner:
    from backends.ort.export_cache import exported
    from backends.ort.kernels.sampler import CompiledSampler
    from backends.ort.kv_graph import info_with_kv_dtype
    from backends.ort.runner import PagedRunner
    from backends.ort.session import open_with_kernels

    if not _is_export(folder):
        folder = exported(folder)
    info = ModelInfo.load(folder)
    kv_dtype = "float32" if kv_cache_dtype == "auto" else kv_cache_dtype
    session, kernels = open_with_kernels(folder, info, num_threads=num_threads, options=options, kv_dtype=kv_dtype)
    sampler = None if kernels.library is None else CompiledSampler.load(kernels.library, num_threads)
    return PagedRunner(session, info_with_kv_dtype(info, kv_dtype), kernels, sampler)


def _make_dense_runner(dense: "DenseFolder", num_threads: int, options: "OrtOptions") -> ModelRunner:
    from backends.ort.dense_graph import DenseGraph
    from backends.ort.dense_runner import DenseRunner
    from backends.ort.session import open_graph

    facts = dense.read_facts()
    session = open_graph(dense.graph, num_threads=num_threads, options=options)
    graph = DenseGraph(dense.graph, session, facts)
    return DenseRunner(graph, graph.model_info(dense.folder.resolve().name, facts))
