"""DenseGraph: a decoder graph with `past_key_values.N.key/value` inputs and `present.N.key/value` outputs.

Finds out from the session itself what the graph takes and gives, and, by running two tokens through it, how it treats
its cache:

    shared   past [batch, heads, capacity, dim] may be longer than what it holds; the new keys and values are written
             behind that, in place where past and present are bound to one memory. The attention mask says how much each
             row holds: ones, then zeros. (com.microsoft.GroupQueryAttention, as onnxruntime-genai's builder wires it.)
    concat   past [batch, heads, length, dim] is full; present is past and the new ones joined, a new tensor. (optimum.)

Knows nothing about sequences.
"""

import re
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from backends.ort.dense_folder import DecoderFacts
from nanovllm.errors import BackendError, ModelError
from nanovllm.model_info import KVCacheInfo, ModelInfo

if TYPE_CHECKING:
    from onnxruntime import InferenceSession  # type: ignore[import-untyped, unused-ignore]

__all__ = ["DenseGraph"]

Array = npt.NDArray[Any]

_PAST = re.compile(r"past_key_values\.(\d+)\.(key|value)")
_NUM_LOGITS = ("num_logits_to_keep", "logits_to_keep")
_DTYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}
_EXPORT_WITH_PAST = "Export it with a KV cache (optimum: --task text-generation-with-past)."


class DenseGraph:
    """One session over one decoder.

    shares_buffer: "shared" above, else "concat". has_positions: whether positions are given rather than counted from
    the length of past. last_row_only: whether it gives logits for the last token alone.
    num_layers, num_kv_heads, head_dim, vocab_size: sizes; kv_dtype: of the cache.
    """

    def __init__(self, path: Path, session: "InferenceSession", facts: DecoderFacts) -> None:
        """Takes over `session`. Raises `ModelError` where the graph is none that this backend can run."""
        self.path = path
        self._session: InferenceSession | None = session
        inputs = {tensor.name: tensor for tensor in session.get_inputs()}
        outputs = {tensor.name: tensor for tensor in session.get_outputs()}
        self._dtypes = {name: self._dtype(tensor) for name, tensor in (inputs | outputs).items()}
        self.num_layers = self._check_names(inputs, outputs)
        caches = [f"{layer}.{kind}" for layer in range(self.num_layers) for kind in ("key", "value")]
        self._past_names = [f"past_key_values.{cache}" for cache in caches]
        self._present_names = [f"present.{cache}" for cache in caches]
        shapes = {tuple(inputs[name].shape[1::2]) for name in self._past_names}
        dtypes = {self._dtypes[name] for name in (*self._past_names, *self._present_names)}
        if len(shapes) > 1 or len(dtypes) > 1 or any(len(inputs[name].shape) != 4 for name in self._past_names):
            raise ModelError(f"{path}: its caches are not 4-dimensional, or differ in shape or dtype between layers.")
        self.kv_dtype = np.dtype(dtypes.pop())
        heads, dim = shapes.pop()
        self.num_kv_heads = self._size("num_key_value_heads", heads, facts.num_kv_heads)
        self.head_dim = self._size("head_dim", dim, facts.head_dim)
        self.has_positions = "position_ids" in inputs
        self._num_logits = next((name for name in _NUM_LOGITS if name in inputs), None)
        self._logits = np.empty(0, self._dtypes["logits"])
        self.shares_buffer, self.last_row_only, self.vocab_size = self._probe(session)

    def model_info(self, name: str, facts: DecoderFacts) -> ModelInfo:
        """What the graph and the configs say together. vocab_size is the width of the logits."""
        num_heads = facts.num_heads or self.num_kv_heads
        return ModelInfo(
            model_name=name,
            model_type=facts.model_type,
            vocab_size=self.vocab_size,
            eos_token_ids=tuple(i for i in facts.eos_token_ids if i < self.vocab_size),
            bos_token_id=facts.bos_token_id,
            pad_token_id=facts.pad_token_id,
            hidden_size=facts.hidden_size or num_heads * self.head_dim,
            num_layers=self.num_layers,
            num_heads=num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            max_model_len=facts.max_model_len,
            dtype=self.kv_dtype.name,
            kv_cache=KVCacheInfo(layout="num_seqs,num_kv_heads,num_tokens,head_dim", dtype=self.kv_dtype.name),
            generation_defaults=facts.generation_defaults,
        )

    @property
    def num_caches(self) -> int:
        """Keys and values of every layer: layer 0's keys, layer 0's values, layer 1's keys ..."""
        return 2 * self.num_layers

    @property
    def kv_bytes_per_token(self) -> int:
        return self.num_caches * self.num_kv_heads * self.head_dim * self.kv_dtype.itemsize

    @property
    def logits_itemsize(self) -> int:
        return self._logits.itemsize

    def binding(self, past: Seq[Array], present: Seq[Array]) -> Any:
        """An IO binding of the caches, each (batch, num_kv_heads, length, head_dim) and C-contiguous. The caller keeps
        the arrays alive for as long as the binding is used."""
        binding = self._open_session().io_binding()
        for name, array in zip(self._past_names, past, strict=True):
            _bind(binding.bind_input, name, array)
        for name, array in zip(self._present_names, present, strict=True):
            _bind(binding.bind_output, name, array)
        return binding

    def run(self, binding: Any, token_ids: Array, positions: Array, attention_mask: Array) -> Array:
        """Runs tokens (batch, num_tokens) at `positions` (the same shape) with a mask (batch, past and new tokens).

        Returns logits (batch, num_tokens or 1, vocab_size), in the graph's dtype and in memory that the next run
        reuses. Raises `BackendError`.
        """
        inputs = self._small_inputs(token_ids, positions, attention_mask)
        for name, array in inputs.items():
            _bind(binding.bind_input, name, array)
        shape = (len(token_ids), 1 if self.last_row_only else token_ids.shape[1], self.vocab_size)
        size = int(np.prod(shape))
        if self._logits.size < size:
            self._logits = np.empty(size, self._logits.dtype)
        logits = self._logits[:size].reshape(shape)
        _bind(binding.bind_output, "logits", logits)
        session = self._open_session()
        try:
            session.run_with_iobinding(binding)
        except Exception as error:  # its exceptions share no base class
            raise BackendError(
                f"ONNX Runtime failed in a run of {token_ids.size} tokens of {self.path}: {error}"
            ) from error
        return logits

    def close(self) -> None:
        self._session = None
        self._logits = self._logits[:0].copy()

    def _small_inputs(self, token_ids: Array, positions: Array, attention_mask: Array) -> dict[str, Array]:
        arrays = {"input_ids": token_ids, "attention_mask": attention_mask}
        if self.has_positions:
            arrays["position_ids"] = positions
        if self._num_logits:
            arrays[self._num_logits] = np.array(1)
        return {name: array.astype(self._dtypes[name], order="C", copy=False) for name, array in arrays.items()}

    def _probe(self, session: "InferenceSession") -> tuple[bool, bool, int]:
        """shares_buffer, last_row_only and vocab_size, seen from two tokens."""
        try:
            logits, present = self._try(session, past_len=4)
            if present.shape[2] == 4:
                return True, logits.shape[1] == 1, logits.shape[2]
        except Exception:  # joining past and new tokens does not fit a mask of two: "concat", tried next
            pass
        try:
            logits, present = self._try(session, past_len=0)
            if present.shape[2] != 2:
                raise ValueError(f"two tokens gave a cache of shape {present.shape}")
            return False, logits.shape[1] == 1, logits.shape[2]
        except Exception as error:  # as in run
            raise ModelError(f"{self.path} does not run as a decoder with a KV cache: {error}") from error

    def _try(self, session: "InferenceSession", past_len: int) -> tuple[Array, Array]:
        """Logits and layer 0's keys after two tokens, given an empty past with room for `past_len`."""
        pair = np.zeros((1, 2), np.int64)
        feed = self._small_inputs(pair, np.arange(2)[None], pair + 1)
        shape = (1, self.num_kv_heads, past_len, self.head_dim)
        feed.update({name: np.zeros(shape, self.kv_dtype) for name in self._past_names})
        logits, present = session.run(["logits", self._present_names[0]], feed)
        if logits.ndim != 3:
            raise ValueError(f"its logits have shape {logits.shape}, not (batch, tokens, vocabulary)")
        return logits, present

    def _check_names(self, inputs: dict[str, Any], outputs: dict[str, Any]) -> int:
        """The number of layers."""
        if "use_cache_branch" in inputs:
            raise ModelError(
                f"{self.path} is a merged decoder with a use_cache_branch input, as old versions of optimum made. "
                "Export the model again with optimum-onnx, or use another file of the folder (option model_file)."
            )
        caches = [match.groups() for name in inputs if (match := _PAST.fullmatch(name))]
        num_layers = len({layer for layer, _ in caches})
        expected = [(str(layer), kind) for layer in range(num_layers) for kind in ("key", "value")]
        if not caches or sorted(caches) != sorted(expected):
            raise ModelError(
                f"{self.path} has no inputs past_key_values.N.key and .value, N = 0, 1, ...; it has "
                f"{', '.join(inputs)}. {_EXPORT_WITH_PAST}"
            )
        needed = ["logits", *(f"present.{layer}.{kind}" for layer, kind in expected)]
        missing = [name for name in ("input_ids", "attention_mask") if name not in inputs]
        missing += [name for name in needed if name not in outputs]
        if missing:
            raise ModelError(f"{self.path} lacks the inputs or outputs {', '.join(missing)}. {_EXPORT_WITH_PAST}")
        known = {"input_ids", "attention_mask", "position_ids", *_NUM_LOGITS}
        unknown = [name for name in inputs if name not in known and not _PAST.fullmatch(name)]
        if unknown:
            raise ModelError(f"{self.path} wants inputs that this backend does not know: {', '.join(unknown)}.")
        return num_layers

    def _dtype(self, tensor: Any) -> type[np.generic]:
        dtype = _DTYPES.get(tensor.type)
        if dtype is None:
            allowed = ", ".join(_DTYPES)
            raise ModelError(f"{self.path}: {tensor.name} is a {tensor.type}; this backend runs graphs of {allowed}.")
        return dtype

    def _size(self, key: str, dimension: int | str | None, said: int | None) -> int:
        """A size that the graph fixes, or else the configs say."""
        size = dimension if isinstance(dimension, int) else said
        if size is None:
            raise ModelError(f"{self.path} leaves the dimension {dimension!r} open and its config says no {key}.")
        return size

    def _open_session(self) -> "InferenceSession":
        if self._session is None:
            raise BackendError("the runner is closed; build a new one.")
        return self._session


def _bind(bind: Any, name: str, array: Array) -> None:
    """Binds C-contiguous memory by its address; the caller keeps the array alive until the run is over."""
    bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
