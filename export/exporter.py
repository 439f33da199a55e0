"""`export_model`: from a checkpoint to a folder that ONNX Runtime serves.

In: a folder or hub id. Out: a folder with model.onnx, model.onnx.data, model_info.json and the tokenizer's files.
Needs neither PyTorch nor ONNX Runtime; memory does not grow with the model.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from export.folder import MODEL_FILE, new_folder
from export.graph import OnnxGraph, build_graph
from export.model_facts import TOKENIZER_FILES, make_model_info, package_version
from export.peak_memory import peak_memory_bytes
from nanovllm.architectures import ArchitectureError, Decoder, UnknownArchitectureError, decoder_from_config
from nanovllm.checkpoint import CONFIG_FILE, GENERATION_CONFIG_FILE, Checkpoint, resolve_model
from nanovllm.errors import CheckpointError, ConfigError, ExportError, UnsupportedModelError
from nanovllm.model_info import MODEL_INFO_FILE, WeightsFile

__all__ = ["DEFAULT_BLOCK_SIZE", "PRECISIONS", "ExportReport", "export_model"]

PRECISIONS = ("fp32",)
DEFAULT_BLOCK_SIZE = 32


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What an export made. num_bytes: of all files together. peak_memory_bytes: of the whole process, where known."""

    folder: Path
    model_name: str
    model_type: str
    precision: str
    num_parameters: int
    num_bytes: int
    seconds: float
    peak_memory_bytes: int | None


def export_model(
    model: str | Path,
    output: str | Path | None = None,
    *,
    precision: str = "fp32",
    max_model_len: int | None = None,
    block_size: int = DEFAULT_BLOCK_SIZE,
    revision: str | None = None,
    force: bool = False,
    progress: bool = True,
) -> ExportReport:
    """Exports `model` (folder, hub id or "tiny-chat") to `output`, by default models/NAME-onnx in the working folder.

    max_model_len: longest sequence in tokens, by default and at most the checkpoint's own. block_size: tokens of a KV
    block that the engine prefers for this model. revision: branch, tag or commit of a hub id. force: replace an
    existing export. progress: bar on stderr. The folder appears complete or not at all.

    Raises `ModelError` (`ModelNotFoundError`, `CheckpointError`, `UnsupportedModelError`, `ExportError`) or
    `ConfigError` for an option out of range.
    """
    start = time.perf_counter()
    _check_options(precision, max_model_len, block_size)
    checkpoint = Checkpoint(_checkpoint_folder(model, revision))
    decoder = _decoder(checkpoint)
    max_model_len = _max_model_len(max_model_len, decoder.geometry.max_model_len)
    graph = build_graph(decoder, checkpoint, max_model_len=max_model_len, producer_version=package_version("nanovllm"))
    name = _model_name(model, checkpoint)
    target = Path("models", f"{name}-onnx") if output is None else Path(output)
    with new_folder(target, force=force) as folder:
        weights = _write_model(folder, graph, progress=progress)
        info = make_model_info(
            checkpoint,
            decoder.geometry,
            graph,
            weights,
            name=name,
            source=str(model),
            max_model_len=max_model_len,
            block_size=block_size,
        )
        (folder / MODEL_INFO_FILE).write_text(info.to_json(), encoding="utf-8")
        for file in (*TOKENIZER_FILES, GENERATION_CONFIG_FILE):
            if (checkpoint.folder / file).is_file():
                shutil.copyfile(checkpoint.folder / file, folder / file)
    return ExportReport(
        folder=target,
        model_name=name,
        model_type=decoder.geometry.model_type,
        precision=precision,
        num_parameters=graph.num_parameters,
        num_bytes=sum(file.stat().st_size for file in target.iterdir()),
        seconds=time.perf_counter() - start,
        peak_memory_bytes=peak_memory_bytes(),
    )


def _check_options(precision: str, max_model_len: int | None, block_size: int) -> None:
    if precision not in PRECISIONS:
        raise ConfigError(f"precision is {precision!r}; this version exports {', '.join(PRECISIONS)}.")
    for name, value in (("block_size", block_size), ("max_model_len", max_model_len)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1.")


def _checkpoint_folder(model: str | Path, revision: str | None) -> Path:
    folder = resolve_model(str(model), revision)
    if (folder / MODEL_INFO_FILE).is_file() and not (folder / CONFIG_FILE).is_file():
        raise ExportError(f"{folder} is an exported model already. Give the checkpoint that it was made from.")
    return folder


def _decoder(checkpoint: Checkpoint) -> Decoder:
    path = checkpoint.folder / CONFIG_FILE
    try:
        return decoder_from_config(checkpoint.config)
    except UnknownArchitectureError as error:
        raise UnsupportedModelError(f"{path}: {error}") from error
    except ArchitectureError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _max_model_len(wanted: int | None, longest: int) -> int:
    if wanted is not None and wanted > longest:
        raise ConfigError(f"max_model_len is {wanted}; this checkpoint was made for at most {longest} tokens.")
    return wanted or longest


def _model_name(model: str | Path, checkpoint: Checkpoint) -> str:
    """Last part of a folder's path, of a hub id or of the name of the model in the box."""
    return checkpoint.folder.resolve().name if Path(model).expanduser().is_dir() else Path(model).name


def _write_model(folder: Path, graph: OnnxGraph, *, progress: bool) -> WeightsFile:
    """Writes graph and weights."""
    needed, free = graph.plan.num_bytes, shutil.disk_usage(folder).free
    if free < needed:
        raise ExportError(
            f"the weights need {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free for {folder.parent}. "
            "Make room or give another --output."
        )
    (folder / MODEL_FILE).write_bytes(graph.model.SerializeToString())
    with _bar(graph.plan.num_value_bytes, shown=progress) as on_progress:
        return graph.plan.write(folder, on_progress)


@contextmanager
def _bar(total: int, *, shown: bool) -> Iterator[Callable[[int], object]]:
    """A progress bar in bytes; yields what is called with the bytes done since the last call."""
    from tqdm import tqdm

    with tqdm(total=total, unit="B", unit_scale=True, desc="Exporting", disable=not shown) as bar:
        yield bar.update
