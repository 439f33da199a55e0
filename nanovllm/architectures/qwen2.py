"""Qwen2 and Qwen2.5: pre-norm decoder, grouped-query attention with biases on q, k and v, SwiGLU, rotary positions.

Source of the definition: the technical report (arXiv 2407.10671) and the fields of the published config.json files.
Sliding windows, which some of those carry switched off, are refused where they are switched on.
"""

from dataclasses import dataclass
from typing import TypeVar

from nanovllm.architectures.config_fields import Config, choice, count, flag, number
from nanovllm.architectures.errors import ArchitectureError
from nanovllm.architectures.ops import AttentionSpec, Geometry, Linear, Ops, Weight
from nanovllm.architectures.rope import Rope, rope_from_config

__all__ = ["Qwen2Config", "Qwen2Decoder"]

V = TypeVar("V")


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen2Config:
    """The fields of config.json that define the arithmetic; sizes in features, lengths in tokens."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_model_len: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    rope: Rope

    @classmethod
    def from_config(cls, config: Config) -> "Qwen2Config":
        """Reads config.json in the dialect of transformers 4 or 5. Raises `ArchitectureError`."""
        _refuse_unsupported(config)
        hidden_size, num_heads = count(config, "hidden_size"), count(config, "num_attention_heads")
        num_kv_heads = count(config, "num_key_value_heads", num_heads)
        if num_heads % num_kv_heads:
            raise ArchitectureError(
                f"num_attention_heads ({num_heads}) is not a multiple of num_key_value_heads ({num_kv_heads})."
            )
        if config.get("head_dim") is None and hidden_size % num_heads:
            raise ArchitectureError(
                f"head_dim is absent and hidden_size ({hidden_size}) is no multiple of num_attention_heads {num_heads}."
            )
        head_dim = count(config, "head_dim", hidden_size // num_heads)
        return cls(
            vocab_size=count(config, "vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=count(config, "intermediate_size"),
            num_layers=count(config, "num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            max_model_len=count(config, "max_position_embeddings"),
            rms_norm_eps=number(config, "rms_norm_eps", 1e-6),
            tie_word_embeddings=flag(config, "tie_word_embeddings", False),
            rope=rope_from_config(config, head_dim),
        )


def _refuse_unsupported(config: Config) -> None:
    choice(config, "hidden_act", ("silu",), "silu")
    if flag(config, "use_sliding_window", False) or "sliding_attention" in (config.get("layer_types") or ()):
        raise ArchitectureError("use_sliding_window is on; sliding windows of Qwen2 are not supported.")
    if config.get("quantization_config"):
        raise ArchitectureError(
            "quantization_config is set: the weights are quantized already. Use the original, unquantized checkpoint."
        )


@dataclass(frozen=True, slots=True)
class Qwen2Decoder:
    """The decoder: `logits` says once what it computes."""

    config: Qwen2Config

    @classmethod
    def from_config(cls, config: Config) -> "Qwen2Decoder":
        """Raises `ArchitectureError`."""
        return cls(Qwen2Config.from_config(config))

    @property
    def geometry(self) -> Geometry:
        c = self.config
        return Geometry(
            model_type="qwen2",
            vocab_size=c.vocab_size,
            hidden_size=c.hidden_size,
            num_layers=c.num_layers,
            num_heads=c.num_heads,
            num_kv_heads=c.num_kv_heads,
            head_dim=c.head_dim,
            max_model_len=c.max_model_len,
            rope=c.rope,
        )

    def logits(self, ops: Ops[V]) -> V:
        """Logits of the wanted rows, (num_wanted, vocab_size)."""
        c = self.config
        table = Weight("model.embed_tokens.weight", (c.vocab_size, c.hidden_size))
        head = table if c.tie_word_embeddings else Weight("lm_head.weight", table.shape)
        x = ops.embedding(table, "token_ids")
        for layer in range(c.num_layers):
            x = self._layer(ops, x, layer)
        x = self._norm(ops, ops.wanted_rows(x), "model.norm")
        (logits,) = ops.linear(x, [Linear(head)], shard="vocab")
        return logits

    def _layer(self, ops: Ops[V], x: V, layer: int) -> V:
        name = f"model.layers.{layer}"
        x = ops.add(x, self._attention(ops, self._norm(ops, x, f"{name}.input_layernorm"), layer))
        return ops.add(x, self._mlp(ops, self._norm(ops, x, f"{name}.post_attention_layernorm"), layer))

    def _attention(self, ops: Ops[V], x: V, layer: int) -> V:
        c, name = self.config, f"model.layers.{layer}.self_attn"
        width, kv_width = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        projections = [
            _linear(f"{name}.{part}_proj", c.hidden_size, out, bias=True)
            for part, out in (("q", width), ("k", kv_width), ("v", kv_width))
        ]
        query, key, value = ops.linear(x, projections, shard="column")
        spec = AttentionSpec(
            layer=layer,
            num_heads=c.num_heads,
            num_kv_heads=c.num_kv_heads,
            head_dim=c.head_dim,
            scale=c.head_dim**-0.5,
            rope=c.rope,
        )
        attended = ops.attention(query, key, value, spec)
        (out,) = ops.linear(attended, [_linear(f"{name}.o_proj", width, c.hidden_size)], shard="row")
        return out

    def _mlp(self, ops: Ops[V], x: V, layer: int) -> V:
        c, name = self.config, f"model.layers.{layer}.mlp"
        halves = [_linear(f"{name}.{part}_proj", c.hidden_size, c.intermediate_size) for part in ("gate", "up")]
        gate, up = ops.linear(x, halves, shard="column")
        down = _linear(f"{name}.down_proj", c.intermediate_size, c.hidden_size)
        (out,) = ops.linear(ops.gated(gate, up, "silu"), [down], shard="row")
        return out

    def _norm(self, ops: Ops[V], x: V, name: str) -> V:
        return ops.rms_norm(x, Weight(f"{name}.weight", (self.config.hidden_size,)), eps=self.config.rms_norm_eps)


def _linear(name: str, in_features: int, out_features: int, *, bias: bool = False) -> Linear:
    weight = Weight(f"{name}.weight", (out_features, in_features))
    return Linear(weight, Weight(f"{name}.bias", (out_features,)) if bias else None)
