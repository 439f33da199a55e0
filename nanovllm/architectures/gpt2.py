"""GPT-2: learned positions, layer norms, one fused projection, GELU, and a head that is the table.

The checkpoint keeps linear weights as (in_features, out_features), and some names lack the prefix "transformer.".
Source of the definition: Radford et al. 2019, and the fields of the published config.json files.
"""

from dataclasses import dataclass
from typing import TypeVar

from nanovllm.architectures.config_fields import Config, count, flag, number, refuse
from nanovllm.architectures.errors import ArchitectureError
from nanovllm.architectures.geometry import Context, attention_spec
from nanovllm.architectures.layers import activation, attention, cut, layer_norm, linear, plain_mlp, turned
from nanovllm.architectures.ops import Activation, Geometry, Linear, Ops, Weight

__all__ = ["GPT2Decoder"]

V = TypeVar("V")


@dataclass(frozen=True, slots=True, kw_only=True)
class GPT2Decoder:
    """prefix: of the names of all tensors but the head's. scale_by_head_dim: whether scores are divided by
    sqrt(head_dim). scale_by_layer: whether those of layer i are divided by i + 1 as well."""

    geometry: Geometry
    prefix: str
    inner_size: int
    norm_eps: float
    activation: Activation
    scale_by_head_dim: bool
    scale_by_layer: bool
    tie_word_embeddings: bool

    @classmethod
    def from_config(cls, config: Config, context: Context) -> "GPT2Decoder":
        """Raises `ArchitectureError`."""
        refuse(config, "add_cross_attention")
        geometry = _geometry(config)
        return cls(
            geometry=geometry,
            prefix="" if "wte.weight" in context.tensor_names else "transformer.",
            inner_size=count(config, "n_inner", 4 * geometry.hidden_size),
            norm_eps=number(config, "layer_norm_epsilon", 1e-5),
            activation=activation(config, "activation_function", "gelu_new"),
            scale_by_head_dim=flag(config, "scale_attn_weights", True),
            scale_by_layer=flag(config, "scale_attn_by_inverse_layer_idx", False),
            tie_word_embeddings=flag(config, "tie_word_embeddings", True),
        )

    def logits(self, ops: Ops[V]) -> V:
        """Logits of the wanted rows, (num_wanted, vocab_size)."""
        g = self.geometry
        table = Weight(f"{self.prefix}wte.weight", (g.vocab_size, g.hidden_size))
        positions = Weight(f"{self.prefix}wpe.weight", (g.max_model_len, g.hidden_size))
        x = ops.add(ops.embedding(table, "token_ids"), ops.embedding(positions, "positions"))
        for layer in range(g.num_layers):
            name = f"{self.prefix}h.{layer}"
            x = ops.add(x, self._attention(ops, self._norm(ops, x, f"{name}.ln_1"), name, layer))
            x = ops.add(x, self._mlp(ops, self._norm(ops, x, f"{name}.ln_2"), name))
        x = self._norm(ops, ops.wanted_rows(x), f"{self.prefix}ln_f")
        head = table if self.tie_word_embeddings else Weight("lm_head.weight", table.shape)
        (logits,) = ops.linear(x, [Linear(head)], shard="vocab")
        return logits

    def _attention(self, ops: Ops[V], x: V, name: str, layer: int) -> V:
        hidden = self.geometry.hidden_size
        fused = turned(linear(f"{name}.attn.c_attn", hidden, 3 * hidden, bias=True))
        out = turned(linear(f"{name}.attn.c_proj", hidden, hidden, bias=True))
        scale = self.geometry.head_dim**-0.5 if self.scale_by_head_dim else 1.0
        spec = attention_spec(self.geometry, layer, scale=scale / (layer + 1) if self.scale_by_layer else scale)
        return attention(ops, x, cut(fused, (hidden, hidden, hidden)), out, spec)

    def _mlp(self, ops: Ops[V], x: V, name: str) -> V:
        hidden, inner = self.geometry.hidden_size, self.inner_size
        up = turned(linear(f"{name}.mlp.c_fc", hidden, inner, bias=True))
        down = turned(linear(f"{name}.mlp.c_proj", inner, hidden, bias=True))
        return plain_mlp(ops, x, up, down, self.activation)

    def _norm(self, ops: Ops[V], x: V, name: str) -> V:
        return layer_norm(ops, x, name, self.geometry.hidden_size, self.norm_eps)


def _geometry(config: Config) -> Geometry:
    """GPT-2 has its own names for sizes."""
    hidden_size, num_heads = count(config, "n_embd", 768), count(config, "n_head", 12)
    if hidden_size % num_heads:
        raise ArchitectureError(f"n_embd ({hidden_size}) is no multiple of n_head ({num_heads}).")
    return Geometry(
        model_type="gpt2",
        vocab_size=count(config, "vocab_size"),
        hidden_size=hidden_size,
        num_layers=count(config, "n_layer", 12),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=hidden_size // num_heads,
        max_model_len=count(config, "n_positions", 1024),
        rope=None,
    )
