"""The operations that decoders are written in. An architecture calls them once; what a call *does* is the
interpreter's business: the exporter adds nodes to an ONNX graph, the reference computes in numpy.

Every value is 2-D and packed: (rows, features), the tokens of all sequences one after the other. An interpreter knows
sequences, positions and the KV cache; an architecture does not. Weights are named as in the checkpoint and declared
with the shape that the configuration implies, so that an interpreter can check, stream, merge, shard or invent them.

What other families need has its place: rotation of a part of a head is `Rope.dim`, sliding windows and score capping
are fields of `AttentionSpec`, norms of single heads are `groups`, a learned position table is an `embedding` of
"positions", multipliers are `scale`, a parallel block is an `add` of two branches, a weight that the checkpoint keeps
turned or as a part of a larger one says so in `Weight.stored`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from nanovllm.architectures.rope import Rope

__all__ = [
    "Activation",
    "AttentionSpec",
    "GatedMLP",
    "Geometry",
    "Ids",
    "Linear",
    "Mixture",
    "Ops",
    "Shard",
    "Stored",
    "Weight",
]

V = TypeVar("V")

Activation = Literal["silu", "gelu", "gelu_tanh"]
"""silu: x * sigmoid(x). gelu: x * Phi(x), exact. gelu_tanh: its tanh approximation (arXiv 1606.08415)."""

Ids = Literal["token_ids", "positions"]

Shard = Literal["column", "row", "vocab"]
"""How a linear layer is cut for tensor parallelism: by output rows (each rank yields its part, as before attention and
inside an MLP), by input columns (partial sums are added up), or by vocabulary (parts are gathered)."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a weight lies in a tensor of the checkpoint that is not the weight itself.

    The tensor has `shape` and is read as a matrix whose rows are all axes but the last (a vector's are its elements),
    or, where `transposed`, whose rows are the last axis. The weight is the rows of `ranges`, (start, stop) each, one
    after the other.
    """

    shape: tuple[int, ...]
    ranges: tuple[tuple[int, int], ...]
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor of the checkpoint, by name, and the shape in which it is used.

    stored: how it lies in the tensor of that name; None where it is the whole tensor, in this shape.
    """

    name: str
    shape: tuple[int, ...]
    stored: Stored | None = None

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape that the tensor must have in the checkpoint."""
        return self.shape if self.stored is None else self.stored.shape


@dataclass(frozen=True, slots=True)
class Linear:
    """x @ weight.T + bias. weight: (out_features, in_features), as PyTorch keeps it; bias: (out_features,).

    heads: whose features the outputs are, one head after the other; an interpreter that cuts the layer keeps heads
    whole. None: they may be cut anywhere.
    """

    weight: Weight
    bias: Weight | None = None
    heads: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedMLP:
    """The layers of down(activation(gate(x)) * up(x))."""

    gate: Linear
    up: Linear
    down: Linear


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """A mixture of experts.

    router: (num_experts, features). normalize: whether the shares of the chosen experts are made to add up to 1.
    """

    router: Weight
    experts: tuple[GatedMLP, ...]
    num_chosen: int
    normalize: bool
    activation: Activation


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """Causal attention of one layer.

    layer: index of its KV cache. scale: factor on the scores. rope: rotation of queries and keys, None for none.
    window: a token sees this many latest tokens, itself included; None for all. softcap: scores s become
    softcap * tanh(s / softcap); None for none.
    """

    layer: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    rope: Rope | None = None
    window: int | None = None
    softcap: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """The sizes of a decoder that engines and runners ask for. max_model_len counts tokens."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_model_len: int
    rope: Rope | None


class Ops(Protocol[V]):
    """One interpreter. Rows of every value are the packed tokens, after `wanted_rows` the wanted ones."""

    def embedding(self, table: Weight, ids: Ids) -> V:
        """Rows of `table`, (num_ids, features), by the token ids or by the positions of the tokens."""

    def linear(self, x: V, layers: Sequence[Linear], *, shard: Shard) -> tuple[V, ...]:
        """One result per layer. The layers share the input, so an interpreter may merge them into one product."""

    def rms_norm(self, x: V, weight: Weight, *, eps: float, offset: float = 0.0, groups: int = 1) -> V:
        """x / sqrt(mean(x ** 2) + eps) * (weight + offset), the mean over the features of each of `groups` equal parts.

        weight: (features / groups,), shared by the groups.
        """

    def layer_norm(self, x: V, weight: Weight, bias: Weight | None, *, eps: float) -> V:
        """(x - mean(x)) / sqrt(var(x) + eps) * weight + bias over the features."""

    def attention(self, query: V, key: V, value: V, spec: AttentionSpec) -> V:
        """Every token attends to its own sequence up to itself, keys and values of earlier steps included.

        query: (rows, num_heads * head_dim), key and value: (rows, num_kv_heads * head_dim), not yet rotated; query head
        h reads KV head h * num_kv_heads // num_heads. Returns (rows, num_heads * head_dim).
        """

    def activation(self, x: V, kind: Activation) -> V:
        """`kind` element by element."""

    def gated(self, gate: V, up: V, kind: Activation) -> V:
        """activation(gate) * up: one operation, because device kernels fuse it."""

    def moe(self, x: V, mixture: Mixture) -> V:
        """For every row the sum of share * expert(row) over the experts that the router chooses for it.

        The shares are softmax(row @ router.T), over all experts. Chosen are the `num_chosen` experts of the largest
        shares, of equal ones the first; where `normalize`, their shares are divided by the sum of the chosen ones'.
        """

    def add(self, a: V, b: V) -> V:
        """a + b."""

    def scale(self, x: V, factor: float) -> V:
        """x * factor."""

    def softcap(self, x: V, cap: float) -> V:
        """cap * tanh(x / cap)."""

    def wanted_rows(self, x: V) -> V:
        """Only the rows whose logits are wanted. Called once, before the final norm: the rest of the work is saved."""
