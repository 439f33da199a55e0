"""Smoothing: outlying channels are moved from activations into weights, where a scale for each row bears them better.

One channel of a layer's input that is a hundred times larger than the others leaves the others a hundredth of the int8
range that they share. But the input of most layers comes straight from something that is linear in each channel, so
a factor can move:

    norm gain / s       -> linear layers with columns * s          (norm gain and, for layer norms, bias)
    rows of up_proj / s -> gated product -> down_proj columns * s  (and up_proj's bias)

The result is the same function: s are powers of two, so in float32 even bit for bit. After SmoothQuant (arXiv
2211.10438), s = (activation / weight) ** 0.5, with two differences. The size of the activations is not measured on text
but read off the weights, a channel of a norm being about as large as its gain, one of up_proj as the norm of its row:
so no model has to run to be exported. And only channels that stand out are touched, and only made smaller: where a
gain is small because what it is applied to is large, making it larger would do harm.

In: a decoder, traced to find where this is possible, and a reader of weights. Out: the weights' slices, folded. Weights
are read slice by slice, those with folds once more for their statistics; where a layer's are small they are kept
between the two, never more than `_KEPT_BYTES`.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from export.precision import PrecisionPlan
from nanovllm.architectures import Activation, AttentionSpec, Decoder, Ids, Linear, Mixture, Shard, Weight

__all__ = ["Fold", "Smoothing", "find_folds"]

Float32Array = npt.NDArray[np.float32]
ReadSlices = Callable[[Weight, int], Iterator[Float32Array]]

_SMOOTHED = ("int8", "int8w", "int4")  # where channels of the input share a scale
_SLICE_BYTES = 4 * 2**20
_KEPT_BYTES = 96 * 2**20
_OUTLYING = 2  # in powers of two above the median: what is below is left alone
_FLOOR = 1e-4  # of the largest: smaller channels count as this large, so that dead ones get a finite factor


@dataclass(frozen=True, slots=True)
class Fold:
    """Where one vector of factors moves.

    source: the weight whose rows are divided: a norm's gain or an up_proj. bias: that of the same layer, likewise.
    offset: what is added to the gain. targets: the weights whose columns are multiplied. gain: for up_proj the gain of
    the norm before it and its offset, where it has one.
    """

    source: Weight
    bias: Weight | None
    targets: tuple[Weight, ...]
    offset: float = 0.0
    gain: tuple[Weight, float] | None = None


class Smoothing:
    """The weights of a decoder, folded.

    folds: from `find_folds`. read: yields a weight as the checkpoint has it, in row slices of at most the bytes given.
    """

    def __init__(self, folds: Sequence[Fold], read: ReadSlices) -> None:
        self._read = read
        self._rows = {weight: fold for fold in folds for weight in (fold.source, fold.bias) if weight is not None}
        self._columns = {weight: fold for fold in folds for weight in fold.targets}
        self._factors: dict[Fold, Float32Array] = {}
        self._kept: dict[Weight, list[Float32Array]] = {}
        self._kept_bytes = 0

    def slices(self, weight: Weight, max_bytes: int, offset: float = 0.0) -> Iterator[Float32Array]:
        """weight + offset, folded, in row slices. Ends the weight's stay in memory."""
        rows, columns = (self._factors_of(folds.get(weight)) for folds in (self._rows, self._columns))
        kept = self._kept.pop(weight, None)
        if kept is not None:
            self._kept_bytes -= sum(values.nbytes for values in kept)
        first = 0
        for values in self._read(weight, max_bytes) if kept is None else kept:
            if offset:
                values = values + np.float32(offset)
            yield _folded(values, rows if rows is None else rows[first : first + len(values)], columns)
            first += len(values)

    def _factors_of(self, fold: Fold | None) -> Float32Array | None:
        if fold is None:
            return None
        if fold not in self._factors:
            self._factors[fold] = _balance(self._activations(fold), self._largest_in_columns(fold.targets))
        return self._factors[fold]

    def _activations(self, fold: Fold) -> Float32Array:
        """About how large each channel gets, up to a factor common to all."""
        bias = np.zeros(1, np.float32) if fold.bias is None else np.abs(self._vector(fold.bias))
        if len(fold.source.shape) == 1:
            gain: Float32Array = np.abs(self._vector(fold.source) + np.float32(fold.offset)) + bias
            return gain
        before = None if fold.gain is None else self._vector(fold.gain[0]) + np.float32(fold.gain[1])
        norms = []
        for values in self._read_and_keep(fold.source):
            scaled = values if before is None else values * before
            norms.append(np.sqrt(np.einsum("rc,rc->r", scaled, scaled)))
        sizes: Float32Array = np.concatenate(norms) + bias
        return sizes

    def _largest_in_columns(self, weights: Sequence[Weight]) -> Float32Array:
        """The largest magnitude in each column of the weights, their rows folded already."""
        largest = np.zeros(weights[0].shape[1], np.float32)
        for weight in weights:
            rows, first = self._factors_of(self._rows.get(weight)), 0
            for values in self._read_and_keep(weight):
                folded = _folded(values, rows if rows is None else rows[first : first + len(values)], None)
                np.maximum(largest, np.maximum(folded.max(0), -folded.min(0)), out=largest)
                first += len(values)
        return largest

    def _vector(self, weight: Weight) -> Float32Array:
        return np.concatenate(list(self._read(weight, _SLICE_BYTES)))

    def _read_and_keep(self, weight: Weight) -> Iterator[Float32Array]:
        """The weight as the checkpoint has it, kept for `slices` where there is room."""
        if weight in self._kept:
            yield from self._kept[weight]
            return
        num_bytes = 4 * weight.shape[0] * weight.shape[1]
        if self._kept_bytes + num_bytes > _KEPT_BYTES:
            yield from self._read(weight, _SLICE_BYTES)
            return
        self._kept_bytes += num_bytes
        kept = self._kept[weight] = list(self._read(weight, _SLICE_BYTES))
        yield from kept


def _folded(values: Float32Array, rows: Float32Array | None, columns: Float32Array | None) -> Float32Array:
    """values / rows * columns; exact, since the factors are powers of two."""
    if rows is not None:
        values = values / (rows if values.ndim == 1 else rows[:, None])
    return values if columns is None else values * columns


def _balance(activations: Float32Array, weights: Float32Array) -> Float32Array:
    """Powers of two next to (activations / weights) ** 0.5, around 1."""
    logs = [np.log2(np.maximum(sizes, sizes.max() * _FLOOR)) for sizes in (activations, weights) if sizes.max() > 0]
    if len(logs) < 2 or not np.isfinite(logs).all():  # all zero: nothing to balance; not finite: the quantizer says so
        return np.ones_like(activations)
    exponents = (logs[0] - logs[1]) / 2
    exponents -= np.median(exponents)
    exponents[exponents < _OUTLYING] = 0
    balanced: Float32Array = np.exp2(np.rint(exponents)).astype(np.float32)
    return balanced


def find_folds(decoder: Decoder, precisions: PrecisionPlan) -> list[Fold]:
    """The folds that the decoder allows and that some quantized layer may gain by.

    A norm can be folded where nothing but linear layers reads it; up_proj where nothing but the product reads it and
    nothing but linear layers reads the product. Weights that are used in two places stay as they are.
    """
    tracer = _Tracer(PrecisionPlan(precisions.precision, precisions.keep))  # of its own: it only asks
    decoder.logits(tracer)
    folds = [fold for value in tracer.values if (fold := _fold_of(value)) is not None]
    return [fold for fold in folds if all(tracer.used[weight] == 1 for weight in (fold.source, *fold.targets))]


@dataclass(eq=False, slots=True)
class _Value:
    """A value of the trace. made: by a norm, a linear layer or a gated product, else None. up: that of the product.
    before: what a linear layer read. readers: the linear layers that read it, None for anything else."""

    made: Literal["norm", "linear", "gated"] | None = None
    source: Linear | None = None  # of a norm: its gain and bias
    offset: float = 0.0
    up: "_Value | None" = None
    before: "_Value | None" = None
    readers: list[tuple[Weight, bool] | None] = field(default_factory=list)


def _fold_of(value: _Value) -> Fold | None:
    readers = [reader for reader in value.readers if reader is not None]
    if not any(gains for _, gains in readers) or len(readers) < len(value.readers):
        return None
    targets = tuple(weight for weight, _ in readers)
    if value.made == "norm":
        assert value.source is not None
        return Fold(value.source.weight, value.source.bias, targets, value.offset)
    up = value.up
    if value.made != "gated" or up is None or up.made != "linear" or len(up.readers) != 1:
        return None
    assert up.source is not None
    norm = up.before
    gain = (norm.source.weight, norm.offset) if norm is not None and norm.made == "norm" and norm.source else None
    return Fold(up.source.weight, up.source.bias, targets, gain=gain)


class _Tracer:
    """`Ops` that notes where values come from and who reads them."""

    def __init__(self, precisions: PrecisionPlan) -> None:
        self._precisions = precisions
        self.values: list[_Value] = []
        self.used: Counter[Weight] = Counter()

    def embedding(self, table: Weight, ids: Ids) -> _Value:
        self.used[table] += 1
        return self._value()

    def linear(self, x: _Value, layers: Sequence[Linear], *, shard: Shard) -> tuple[_Value, ...]:
        for layer in layers:
            self.used[layer.weight] += 1
            x.readers.append((layer.weight, self._precisions.of_linear(layer.weight, shard) in _SMOOTHED))
        return tuple(self._value(made="linear", source=layer, before=x) for layer in layers)

    def rms_norm(self, x: _Value, weight: Weight, *, eps: float, offset: float = 0.0, groups: int = 1) -> _Value:
        self.used[weight] += 1
        x.readers.append(None)
        return self._value(made="norm", source=Linear(weight), offset=offset) if groups == 1 else self._value()

    def layer_norm(self, x: _Value, weight: Weight, bias: Weight | None, *, eps: float) -> _Value:
        self.used[weight] += 1
        x.readers.append(None)
        return self._value(made="norm", source=Linear(weight, bias))

    def attention(self, query: _Value, key: _Value, value: _Value, spec: AttentionSpec) -> _Value:
        return self._opaque(query, key, value)

    def activation(self, x: _Value, kind: Activation) -> _Value:
        return self._opaque(x)

    def gated(self, gate: _Value, up: _Value, kind: Activation) -> _Value:
        gate.readers.append(None)
        up.readers.append(None)
        return self._value(made="gated", up=up)

    def moe(self, x: _Value, mixture: Mixture) -> _Value:
        self.used[mixture.router] += 1
        x.readers.append((mixture.router, False))
        for expert in mixture.experts:
            gate, up = self.linear(x, [expert.gate, expert.up], shard="column")
            self.linear(self.gated(gate, up, mixture.activation), [expert.down], shard="row")
        return self._value()

    def add(self, a: _Value, b: _Value) -> _Value:
        return self._opaque(a, b)

    def scale(self, x: _Value, factor: float) -> _Value:
        return self._opaque(x)

    def softcap(self, x: _Value, cap: float) -> _Value:
        return self._opaque(x)

    def wanted_rows(self, x: _Value) -> _Value:
        return self._opaque(x)

    def _opaque(self, *inputs: _Value) -> _Value:
        for value in inputs:
            value.readers.append(None)
        return self._value()

    def _value(self, **facts: Any) -> _Value:
        value = _Value(**facts)
        self.values.append(value)
        return value
