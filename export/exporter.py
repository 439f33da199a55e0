"""`export_model`: from a checkpoint to a folder that ONNX Runtime serves.

In: a folder or hub id. Out: a folder with model.onnx, model.onnx.data, model_info.json and the tokenizer's files.
Needs neither PyTorch nor ONNX Runtime; memory does not grow with the model.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from export.folder import MODEL_FILE, new_folder
from export.graph import OnnxGraph, build_graph
from export.model_facts import TOKENIZER_FILES, make_model_info, package_version
from export.precision import PRECISIONS, PrecisionPlan, parse_keep
from nanovllm.architectures import Decoder
from nanovllm.checkpoint import CONFIG_FILE, GENERATION_CONFIG_FILE, Checkpoint, resolve_model
from nanovllm.checkpoint_decoder import read_decoder
from nanovllm.errors import ConfigError, ExportError
from nanovllm.model_info import MODEL_INFO_FILE, ModelInfo, WeightsFile
from nanovllm.random_weights import RandomCheckpoint, random_checkpoint
from nanovllm.resources import peak_memory_bytes

if TYPE_CHECKING:
    from export.verify import Verification

__all__ = ["DEFAULT_BLOCK_SIZE", "PRECISIONS", "ExportReport", "export_model"]

DEFAULT_BLOCK_SIZE = 32


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What an export made. layers: number of layers of each precision, by kind of layer. verification: where
    it was asked for. num_bytes: of all files together. peak_memory_bytes: of the whole process, where known."""

    folder: Path
    model_name: str
    model_type: str
    precision: str
    layers: Mapping[str, Mapping[str, int]]
    verification: "Verification | None"
    num_parameters: int
    num_bytes: int
    seconds: float
    peak_memory_bytes: int | None


def export_model(
    model: str | Path,
    output: str | Path | None = None,
    *,
    precision: str = "fp32",
    keep: Sequence[str] = (),
    smoothing: bool = True,
    sketch: bool = True,
    verify: bool = False,
    verify_text: str | Path | None = None,
    device: str = "cpu",
    max_model_len: int | None = None,
    block_size: int = DEFAULT_BLOCK_SIZE,
    revision: str | None = None,
    random_weights: bool = False,
    seed: int = 0,
    force: bool = False,
    progress: bool = True,
) -> ExportReport:
    """Exports `model` (folder, hub id or "tiny-chat") to `output`, by default models/NAME-onnx in the working folder.

    precision: one of `PRECISIONS`. keep: layers that get another one, texts of the form PATTERN=PRECISION; see
    `export.precision.KeepRule`. smoothing: whether quantized layers get outlying channels of their inputs folded into
    their weights, which leaves the model's function as it is; see `export.smoothing`. sketch: whether an int8 head gets
    a sketch of half its size, by which greedy tokens are found faster; see `export.greedy_head`. verify: whether to run
    the export against float32, ours and, where it is installed, transformers', and to keep the comparison in
    model_info.json; see `export.verify`. verify_text: a file of text to measure the perplexity on; implies verify.
    device: "cpu". max_model_len: longest sequence in tokens, by default and at most the checkpoint's own. block_size:
    tokens of a KV block that the engine prefers for this model. revision: branch, tag or commit of a hub id.
    random_weights: draw the weights from `seed` instead of reading them; `model` is then a folder with a config.json,
    or one of `nanovllm.known_shapes`. force: replace an existing export. progress: bar on stderr. The folder appears
    complete or not at all.

    Raises `ModelError` (`ModelNotFoundError`, `CheckpointError`, `UnsupportedModelError`, `ExportError`) or
    `ConfigError` for an option out of range.
    """
    start = time.perf_counter()
    precisions = PrecisionPlan(precision, parse_keep(keep))
    _check_options(max_model_len, block_size, device)
    text = None if verify_text is None else _read_text(Path(verify_text))
    if random_weights:
        checkpoint: Checkpoint = random_checkpoint(model, seed)
    else:
        checkpoint = Checkpoint(_checkpoint_folder(model, revision))
    decoder = read_decoder(checkpoint, max_model_len)
    max_model_len = _max_model_len(max_model_len, decoder.geometry.max_model_len)
    graph = build_graph(
        decoder,
        checkpoint,
        max_model_len=max_model_len,
        producer_version=package_version("nanovllm"),
        precisions=precisions,
        smoothing=smoothing,
        sketch=sketch,
    )
    precisions.check_all_used()
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
            source=f"{model}, random weights of seed {seed}" if random_weights else str(model),
            max_model_len=max_model_len,
            block_size=block_size,
            quantization=precisions.as_document(),
        )
        for file in (*TOKENIZER_FILES, GENERATION_CONFIG_FILE):
            if (checkpoint.folder / file).is_file():
                shutil.copyfile(checkpoint.folder / file, folder / file)
        verification = None
        if verify or text is not None:
            verification = _verify(folder, info, decoder, checkpoint, text, progress=progress)
            info = replace(info, verification=verification.as_document())
        (folder / MODEL_INFO_FILE).write_text(info.to_json(), encoding="utf-8")
    return ExportReport(
        folder=target,
        model_name=name,
        model_type=decoder.geometry.model_type,
        precision=precision,
        layers=precisions.kinds(),
        verification=verification,
        num_parameters=graph.num_parameters,
        num_bytes=sum(file.stat().st_size for file in target.iterdir()),
        seconds=time.perf_counter() - start,
        peak_memory_bytes=peak_memory_bytes(),
    )


def _check_options(max_model_len: int | None, block_size: int, device: str) -> None:
    if device != "cpu":
        raise ConfigError(f"device is {device!r}; this version exports for 'cpu' only, a backend for CUDA is to come.")
    for name, value in (("block_size", block_size), ("max_model_len", max_model_len)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1.")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"verify_text is {path}, which cannot be read as UTF-8 text: {error}.") from error


def _checkpoint_folder(model: str | Path, revision: str | None) -> Path:
    folder = resolve_model(str(model), revision)
    if (folder / MODEL_INFO_FILE).is_file() and not (folder / CONFIG_FILE).is_file():
        raise ExportError(f"{folder} is an exported model already. Give the checkpoint that it was made from.")
    return folder


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


def _verify(
    folder: Path, info: ModelInfo, decoder: Decoder, checkpoint: Checkpoint, text: str | None, *, progress: bool
) -> "Verification":
    """Compares the export with a float32 one, which is made for the purpose and removed again."""
    from export.verify import verify

    reference = folder / "reference"
    reference.mkdir()
    producer_version = package_version("nanovllm")
    graph = build_graph(decoder, checkpoint, max_model_len=info.max_model_len, producer_version=producer_version)
    _write_model(reference, graph, progress=progress)
    drawn = isinstance(checkpoint, RandomCheckpoint)
    verification = verify(folder, reference, info, checkpoint.folder, text, random_weights=drawn)
    shutil.rmtree(reference)
    return verification


@contextmanager
def _bar(total: int, *, shown: bool) -> Iterator[Callable[[int], object]]:
    """A progress bar in bytes; yields what is called with the bytes done since the last call."""
    from tqdm import tqdm

    with tqdm(total=total, unit="B", unit_scale=True, desc="Exporting", disable=not shown) as bar:
        yield bar.update
