"""`--exporter optimum`: Hugging Face's own exporter, for families that have no architecture file here.

It traces the model with PyTorch and pins an older transformers, so it lives in a virtual environment of its own and is
run there as a program:

    python -m venv optimum-env && optimum-env/bin/pip install torch "optimum-onnx==0.1.0" onnxruntime
    python -m export --exporter optimum --optimum-python optimum-env/bin/python --model ID_OR_DIR

NANOVLLM_OPTIMUM_PYTHON may name that interpreter instead. What comes out has dense past_key_values; the `onnxruntime`
backend runs it with its dense runner.
"""

import json
import os
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from export.folder import MODEL_FILE, new_folder
from nanovllm.checkpoint import MODEL_IN_THE_BOX, resolve_model
from nanovllm.errors import ConfigError, ExportError

__all__ = ["OPTIMUM_VARIABLE", "OptimumReport", "export_with_optimum"]

OPTIMUM_VARIABLE = "NANOVLLM_OPTIMUM_PYTHON"

_SET_UP = (
    'python -m venv optimum-env && optimum-env/bin/pip install torch "optimum-onnx==0.1.0" onnxruntime, then '
    f"--optimum-python optimum-env/bin/python (or {OPTIMUM_VARIABLE})"
)
_PROGRAM = """
import json, sys
from optimum.exporters.onnx import main_export
main_export(**json.loads(sys.argv[1]))
"""
_NUM_LINES_SHOWN = 12  # of a failed run's output


@dataclass(frozen=True, kw_only=True)
class OptimumReport:
    """What optimum made. num_bytes: of all files together."""

    folder: Path
    model_name: str
    num_bytes: int
    seconds: float


def export_with_optimum(
    model: str | Path,
    output: str | Path | None = None,
    *,
    revision: str | None = None,
    force: bool = False,
    python: str | Path | None = None,
) -> OptimumReport:
    """Exports `model` by optimum's main_export, task text-generation-with-past, in fp32.

    python: interpreter of an environment with optimum-onnx; by default that of NANOVLLM_OPTIMUM_PYTHON. The folder
    appears complete or not at all. Raises `ConfigError` where there is no such interpreter, `ExportError` where
    optimum fails.
    """
    start = time.perf_counter()
    interpreter = _interpreter(python)
    source = str(resolve_model(MODEL_IN_THE_BOX)) if str(model) == MODEL_IN_THE_BOX else str(model)
    name = Path(source).name
    target = Path("models", f"{name}-onnx") if output is None else Path(output)
    options = {
        "model_name_or_path": str(Path(source).resolve()) if Path(source).is_dir() else source,
        "task": "text-generation-with-past",
        "revision": revision or "main",
    }
    with new_folder(target, force=force) as folder:
        _run(interpreter, {**options, "output": str(folder.resolve())})
        if not (folder / MODEL_FILE).is_file():
            raise ExportError(f"optimum ended without an error, but wrote no {MODEL_FILE} for {model}.")
    return OptimumReport(
        folder=target,
        model_name=name,
        num_bytes=sum(file.stat().st_size for file in target.iterdir()),
        seconds=time.perf_counter() - start,
    )


def _interpreter(python: str | Path | None) -> str:
    chosen = python or os.environ.get(OPTIMUM_VARIABLE)
    if not chosen:
        raise ConfigError(f"optimum needs an environment of its own. Set it up by {_SET_UP}.")
    if not Path(chosen).is_file():
        raise ConfigError(f"there is no Python interpreter at {chosen}. Set one up by {_SET_UP}.")
    return str(Path(chosen).absolute())


def _run(interpreter: str, options: dict[str, str]) -> None:
    """Runs main_export, passing its output on to stderr. Raises `ExportError` with the end of it."""
    command = [interpreter, "-P", "-c", _PROGRAM, json.dumps(options)]
    last: deque[str] = deque(maxlen=_NUM_LINES_SHOWN)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                last.append(line)
                sys.stderr.write(line)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise ExportError(f"optimum failed (exit code {process.returncode}):\n{''.join(last).rstrip()}")
