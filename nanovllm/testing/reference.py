"""The oracle: a decoder computed in plain numpy, full causal attention over one sequence, no cache.

Slow and short on purpose, and free of torch and of everything that it checks: exports, kernels and runners are compared
with it. The architecture files are the only thing that it shares with them; those are held against transformers.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nanovllm.architectures import (
    Activation,
    ArchitectureError,
    AttentionSpec,
    Decoder,
    Ids,
    Linear,
    Mixture,
    Rope,
    Shard,
    Weight,
    decoder_from_config,
)
from nanovllm.checkpoint import Checkpoint
from nanovllm.errors import CheckpointError

__all__ = ["ReferenceModel", "reference_logits"]

Array = Any  # a float array; numpy's stubs type most of its arithmetic as Any
Float = type[np.float32] | type[np.float64]


def reference_logits(
    model: Checkpoint | Path | str, token_ids: Sequence[int], *, dtype: Float = np.float32
) -> npt.NDArray[np.float32]:
    """Logits after every token, float32 (len(token_ids), vocab_size). Loads the weights on each call."""
    return ReferenceModel(model, dtype=dtype).logits(token_ids)


class ReferenceModel:
    """A checkpoint that is computed in numpy, in float32 or float64. Keeps every weight that it has used.

    decoder: what to compute, where it is not what config.json says. max_model_len: tokens that the model is built for,
    where that is not the config's; some rope types depend on it. Raises `CheckpointError`.
    """

    def __init__(
        self,
        model: Checkpoint | Path | str,
        *,
        dtype: Float = np.float32,
        decoder: Decoder | None = None,
        max_model_len: int | None = None,
    ) -> None:
        self.checkpoint = model if isinstance(model, Checkpoint) else Checkpoint(model)
        self.dtype = dtype
        try:
            self.decoder = decoder or decoder_from_config(
                self.checkpoint.config, max_model_len=max_model_len, tensor_names=self.checkpoint.tensors
            )
        except ArchitectureError as error:
            raise CheckpointError(f"{self.checkpoint.folder}: {error}") from error
        self._weights: dict[Weight, Array] = {}

    def logits(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits after every token, float32 (len(token_ids), vocab_size)."""
        ids = np.asarray(token_ids, np.int64)
        logits: npt.NDArray[np.float32] = self.decoder.logits(_NumpyOps(self, ids)).astype(np.float32)
        return logits

    def greedy(self, prompt: Sequence[int], num_tokens: int) -> list[int]:
        """The next `num_tokens` tokens, each the most likely one. Computes the whole sequence for every token."""
        tokens = list(prompt)
        for _ in range(num_tokens):
            tokens.append(int(self.logits(tokens)[-1].argmax()))
        return tokens[len(prompt) :]

    def weight(self, weight: Weight) -> Array:
        """The tensor in this model's dtype. Raises `CheckpointError` where it is missing or of another shape."""
        if weight not in self._weights:
            tensor = self.checkpoint.tensor(weight.name, weight.stored_shape)
            self._weights[weight] = _take(weight, tensor.read_float32().astype(self.dtype))
        return self._weights[weight]


def _take(weight: Weight, tensor: Array) -> Array:
    """The weight out of the tensor that holds it; see `Stored`."""
    if weight.stored is None:
        return tensor
    matrix = tensor.reshape(-1, tensor.shape[-1]) if tensor.ndim > 1 else tensor
    rows = matrix.T if weight.stored.transposed else matrix
    return np.concatenate([rows[start:stop] for start, stop in weight.stored.ranges])


class _NumpyOps:
    """`Ops` on arrays (num_tokens, features); one sequence, all rows wanted."""

    def __init__(self, model: ReferenceModel, token_ids: npt.NDArray[np.int64]) -> None:
        self._model = model
        self._ids = {"token_ids": token_ids, "positions": np.arange(len(token_ids))}

    def embedding(self, table: Weight, ids: Ids) -> Array:
        return np.asarray(self._model.weight(table)[self._ids[ids]])

    def linear(self, x: Array, layers: Sequence[Linear], *, shard: Shard) -> tuple[Array, ...]:
        results = [x @ self._model.weight(layer.weight).T for layer in layers]
        return tuple(
            y if layer.bias is None else y + self._model.weight(layer.bias)
            for y, layer in zip(results, layers, strict=True)
        )

    def rms_norm(self, x: Array, weight: Weight, *, eps: float, offset: float = 0.0, groups: int = 1) -> Array:
        parts = x.reshape(len(x), groups, -1)
        normed = parts / np.sqrt((parts**2).mean(-1, keepdims=True) + eps)
        return (normed * (self._model.weight(weight) + offset)).reshape(x.shape)

    def layer_norm(self, x: Array, weight: Weight, bias: Weight | None, *, eps: float) -> Array:
        normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
        y = normed * self._model.weight(weight)
        return y if bias is None else y + self._model.weight(bias)

    def attention(self, query: Array, key: Array, value: Array, spec: AttentionSpec) -> Array:
        num_tokens = len(query)
        q = query.reshape(num_tokens, spec.num_heads, spec.head_dim)
        k = key.reshape(num_tokens, spec.num_kv_heads, spec.head_dim)
        v = value.reshape(num_tokens, spec.num_kv_heads, spec.head_dim)
        if spec.rope is not None:
            q, k = _rotate(q, spec.rope), _rotate(k, spec.rope)
        group = spec.num_heads // spec.num_kv_heads
        k, v = k.repeat(group, axis=1), v.repeat(group, axis=1)
        scores = np.einsum("qhd,khd->hqk", q, k) * spec.scale
        if spec.softcap is not None:
            scores = self.softcap(scores, spec.softcap)
        age = np.arange(num_tokens)[:, None] - np.arange(num_tokens)  # (queries, keys), in tokens
        hidden = age < 0 if spec.window is None else (age < 0) | (age >= spec.window)
        scores = np.where(hidden, -np.inf, scores)
        return np.einsum("hqk,khd->qhd", _softmax(scores), v).reshape(num_tokens, -1)

    def activation(self, x: Array, kind: Activation) -> Array:
        if kind == "silu":
            return x / (1 + np.exp(-x))
        if kind == "gelu":
            erf = np.vectorize(math.erf, otypes=[x.dtype])
            return x * (1 + erf(x / math.sqrt(2))) / 2
        return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2

    def gated(self, gate: Array, up: Array, kind: Activation) -> Array:
        return self.activation(gate, kind) * up

    def moe(self, x: Array, mixture: Mixture) -> Array:
        shares = _softmax(x @ self._model.weight(mixture.router).T)  # (num_tokens, num_experts)
        chosen = np.argsort(-shares, axis=-1, kind="stable")[:, : mixture.num_chosen]
        result = np.zeros_like(x)
        for token, experts in enumerate(chosen):
            total = shares[token, experts].sum() if mixture.normalize else 1.0
            for i in experts:
                layers, row = mixture.experts[i], x[token : token + 1]
                gate, up = self.linear(row, [layers.gate, layers.up], shard="column")
                (out,) = self.linear(self.gated(gate, up, mixture.activation), [layers.down], shard="row")
                result[token] += out[0] * (shares[token, i] / total)
        return result

    def add(self, a: Array, b: Array) -> Array:
        return a + b

    def scale(self, x: Array, factor: float) -> Array:
        return x * factor

    def softcap(self, x: Array, cap: float) -> Array:
        return cap * np.tanh(x / cap)

    def wanted_rows(self, x: Array) -> Array:
        return x


def _softmax(scores: Array) -> Array:
    """Over the last axis."""
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def _rotate(x: Array, rope: Rope) -> Array:
    """Rotates x, (num_tokens, heads, head_dim), by the positions 0 .. num_tokens - 1; see `Rope`."""
    frequencies = np.array(rope.inverse_frequencies(), np.float32)
    angles = np.arange(len(x), dtype=np.float32)[:, None] * frequencies  # (num_tokens, dim / 2)
    cos, sin = (f(angles).astype(x.dtype)[:, None, :] * rope.magnitude for f in (np.cos, np.sin))
    half = rope.dim // 2
    first, second = (
        (slice(0, rope.dim, 2), slice(1, rope.dim, 2))
        if rope.interleaved
        else (
            slice(0, half),
            slice(half, rope.dim),
        )
    )
    a, b = x[..., first], x[..., second]
    rotated = x.copy()
    rotated[..., first] = a * cos - b * sin
    rotated[..., second] = b * cos + a * sin
    return rotated
