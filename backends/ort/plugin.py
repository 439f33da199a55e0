"""The plugin "onnxruntime": serves exported folders, and checkpoints by exporting them on first use.

Importing this module loads neither onnxruntime nor the exporter; the factory does.
"""

import json
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from nanovllm.architectures import SUPPORTED_MODEL_TYPES
from nanovllm.checkpoint import CONFIG_FILE, weight_files
from nanovllm.config import EngineConfig
from nanovllm.errors import CheckpointError, ModelError
from nanovllm.model_info import MODEL_INFO_FILE, ModelInfo
from nanovllm.plugins import ModelRunner, ModelRunnerPlugin, ModelSource, Verdict, hookimpl

__all__ = ["nanovllm_model_runners"]


@hookimpl
def nanovllm_model_runners() -> Iterable[ModelRunnerPlugin]:
    return [ModelRunnerPlugin(name="onnxruntime", factory=_make_runner, can_load=_can_load, priority=10)]


def _can_load(source: ModelSource) -> Verdict:
    folder = source.folder
    if folder is None:
        return Verdict(False, "it needs a model folder")
    if find_spec("onnxruntime") is None:
        return Verdict(False, "onnxruntime is not installed: pip install 'nanovllm[cpu]'")
    if _is_export(folder):
        return Verdict(True, "an exported model")
    return _can_export(folder)


def _is_export(folder: Path) -> bool:
    from backends.ort.session import MODEL_FILE

    return (folder / MODEL_INFO_FILE).is_file() and (folder / MODEL_FILE).is_file()


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
        return Verdict(False, f"model_type {model_type!r} cannot be exported; supported: {supported}")
    if find_spec("onnx") is None:
        return Verdict(False, "onnx is not installed, which exporting needs: pip install 'nanovllm[cpu]'")
    return Verdict(True, f"a {model_type} checkpoint, exported on first use")


def _make_runner(source: ModelSource, config: EngineConfig) -> ModelRunner:
    from backends.ort.export_cache import exported
    from backends.ort.options import OrtOptions
    from backends.ort.runner import PagedRunner
    from backends.ort.session import open_session
    from nanovllm.resources import num_physical_cores

    options = OrtOptions.from_options(config.backend_options)
    if source.folder is None:
        raise ModelError(f"backend 'onnxruntime' needs a model folder; {source.name!r} is none.")
    folder = source.folder if _is_export(source.folder) else exported(source.folder)
    info = ModelInfo.load(folder)
    session = open_session(folder, info, num_threads=config.num_threads or num_physical_cores(), options=options)
    return PagedRunner(session, info)
