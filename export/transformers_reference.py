"""transformers' float32 of a checkpoint, as a second reference for `--verify`.

In: a checkpoint folder and token ids. Out: logits. The model runs in a process of its own, `transformers_worker.py`, so
nothing heavy is imported here and its memory, 4 bytes a parameter and PyTorch, is never this process's.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from nanovllm.errors import ExportError

__all__ = ["NoTransformersError", "TransformersReference"]

_WORKER = Path(__file__).with_name("transformers_worker.py")
_PACKAGES = ("transformers", "torch")
_QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
_LONGEST_REASON = 200  # characters


class NoTransformersError(ExportError):
    """transformers cannot be asked about this checkpoint. The message is the reason, in one line for a table."""


class TransformersReference:
    """A checkpoint in transformers, until the end of the `with` block.

    version: of transformers. Raises `NoTransformersError`, on entry or later, where transformers or torch is not
    installed, cannot run the folder, or its process has ended.
    """

    def __init__(self, folder: Path) -> None:
        missing = [package for package in _PACKAGES if importlib.util.find_spec(package) is None]
        if missing:
            names, verb = " and ".join(missing), "is" if len(missing) == 1 else "are"
            raise NoTransformersError(f"{names} {verb} not installed; pip install transformers torch")
        command = [sys.executable, "-P", str(_WORKER), str(folder.resolve())]  # -P: our own files are no modules to it
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **_QUIET},
        )
        try:
            self.version: str = self._read_line()["transformers"]
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> "TransformersReference":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def logits(self, token_ids: Sequence[int], *, first: int = 0) -> npt.NDArray[np.float32]:
        """Logits after each token from index `first` on, (len(token_ids) - first, vocab_size)."""
        pipe = self._process.stdin
        assert pipe is not None
        try:
            pipe.write(json.dumps([list(token_ids), first]).encode() + b"\n")
            pipe.flush()
        except OSError as error:
            raise self._ended() from error
        shape = self._read_line()
        return np.frombuffer(self._read(4 * shape[0] * shape[1]), np.float32).reshape(shape)

    def _read_line(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise self._ended()
        document = json.loads(line)
        if isinstance(document, dict) and "error" in document:
            raise NoTransformersError(f"it cannot run this checkpoint: {_one_line(document['error'])}")
        return document

    def _read(self, num_bytes: int) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(num_bytes)
        if len(data) < num_bytes:
            raise self._ended()
        return data

    def _ended(self) -> NoTransformersError:
        return NoTransformersError(f"its process ended early (exit code {self._process.wait()}; short of memory?)")

    def _close(self) -> None:
        self._process.kill()
        self._process.communicate()


def _one_line(reason: str) -> str:
    text = " ".join(reason.split())
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]} ..."
