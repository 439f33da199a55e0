"""Runs an exported folder on ONNX Runtime, one sequence at a time: what `--verify` needs, and no more.

In: a folder and token ids. Out: logits. Serving is a backend's business, which the exporter does not import.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from export.folder import MODEL_FILE
from export.greedy_head import IDS, INDICES
from nanovllm.errors import ExportError
from nanovllm.model_info import ModelInfo

__all__ = ["GraphSession"]

_BLOCK_SIZE = 32
_CHUNK = 128  # tokens of one run: their logits are in memory together


class GraphSession:
    """An exported folder, opened, with a KV cache for one sequence of at most max_tokens tokens.

    Raises `ExportError` where onnxruntime is missing or cannot load the graph.
    """

    def __init__(self, folder: Path, info: ModelInfo, max_tokens: int) -> None:
        session = _open(folder / MODEL_FILE)
        self._run = session.run_with_iobinding
        self._binding = session.io_binding()
        self._vocab_size = info.vocab_size
        if any(tensor.name == INDICES for tensor in session.get_inputs()):  # logits tell all
            self._no_rows = (np.empty(0, np.int32), np.empty(0, np.int64))
            _bind(self._binding.bind_input, INDICES, self._no_rows[0])
            _bind(self._binding.bind_output, IDS, self._no_rows[1])
        self._num_blocks = -(-max_tokens // _BLOCK_SIZE)
        shape = (info.num_layers, 2, self._num_blocks, _BLOCK_SIZE, info.num_kv_heads, info.head_dim)
        self._pools = np.zeros(shape, np.float32)
        for layer in range(info.num_layers):
            for kind, pool in zip(("key", "value"), self._pools[layer], strict=True):
                _bind(self._binding.bind_input, f"{kind}_cache.{layer}", pool)
                _bind(self._binding.bind_output, f"{kind}_cache_out.{layer}", pool)

    def logits(self, token_ids: Sequence[int], *, first: int = 0) -> npt.NDArray[np.float32]:
        """Logits after each token from index `first` on, (len(token_ids) - first, vocab_size)."""
        rows = []
        for start in range(0, len(token_ids), _CHUNK):
            chunk = token_ids[start : start + _CHUNK]
            rows.append(self._step(chunk, start, range(max(first - start, 0), len(chunk))))
        return np.concatenate(rows)

    def greedy(self, prompt: Sequence[int], max_tokens: int, stop: Sequence[int]) -> list[int]:
        """Up to max_tokens most likely next tokens, the last of them one of `stop` where it comes to that."""
        tokens: list[int] = []
        logits = self.logits(prompt, first=len(prompt) - 1)
        while True:
            tokens.append(int(logits[-1].argmax()))
            if len(tokens) == max_tokens or tokens[-1] in stop:
                return tokens
            logits = self._step(tokens[-1:], len(prompt) + len(tokens) - 1, range(1))

    def _step(self, token_ids: Sequence[int], num_computed: int, wanted: Sequence[int]) -> npt.NDArray[np.float32]:
        """Runs the next tokens after num_computed ones; logits of the wanted of them."""
        positions = num_computed + np.arange(len(token_ids))
        inputs: dict[str, npt.NDArray[Any]] = {
            "token_ids": np.array(token_ids, np.int64),
            "positions": positions,
            "query_start": np.array([0, len(token_ids)], np.int32),
            "context_lens": np.array([num_computed], np.int32),
            "block_tables": np.arange(self._num_blocks, dtype=np.int32)[None],
            "slot_mapping": positions.astype(np.int32),
            "logits_indices": np.array(wanted, np.int32),
        }
        logits = np.empty((len(wanted), self._vocab_size), np.float32)
        for name, array in inputs.items():
            _bind(self._binding.bind_input, name, array)
        _bind(self._binding.bind_output, "logits", logits)
        try:
            self._run(self._binding)
        except Exception as error:  # its exceptions share no base class
            raise ExportError(f"ONNX Runtime failed to run the exported graph: {error}") from error
        return logits


def _open(path: Path) -> Any:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # official wheels send usage data where it is not set
    try:
        import onnxruntime  # type: ignore[import-untyped, unused-ignore]
    except ModuleNotFoundError as error:
        raise ExportError("verifying runs the export and needs onnxruntime: pip install 'nanovllm[cpu]'.") from error
    settings = onnxruntime.SessionOptions()
    settings.enable_mem_pattern = False
    settings.log_severity_level = 4  # every error reaches us as an exception
    settings.add_session_config_entry("session.x64quantprecision", "1")  # exact on every processor, if slower on some
    try:
        return onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class
        raise ExportError(f"ONNX Runtime cannot load the exported graph: {error}") from error


def _bind(bind: Any, name: str, array: npt.NDArray[Any]) -> None:
    """Binds C-contiguous memory by its address; the caller keeps the array alive until the run is over."""
    bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
