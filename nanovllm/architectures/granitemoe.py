"""Granite 3.x with a mixture of experts: Granite's decoder and multipliers, each MLP a choice among experts.

A token's shares are the softmax over the router's scores of the chosen experts. Source of the definition: arXiv
2408.13359 and the fields of the published config.json files.
"""

from dataclasses import dataclass
from typing import TypeVar

from nanovllm.architectures.config_fields import Config, count, flag
from nanovllm.architectures.experts import read_num_chosen, stacked_experts
from nanovllm.architectures.geometry import Context, attention_spec
from nanovllm.architectures.granite_multipliers import GraniteMultipliers
from nanovllm.architectures.llama_parts import LlamaParts
from nanovllm.architectures.ops import Geometry, Mixture, Ops, Weight

__all__ = ["GraniteMoeDecoder"]

V = TypeVar("V")


@dataclass(frozen=True, slots=True, kw_only=True)
class GraniteMoeDecoder:
    """attention_bias: of all four projections of attention. new_names: whether the experts' tensors are named as in the
    modules of transformers 5 instead of as on the hub."""

    parts: LlamaParts
    multipliers: GraniteMultipliers
    attention_bias: bool
    num_experts: int
    num_chosen: int
    new_names: bool

    @classmethod
    def from_config(cls, config: Config, context: Context) -> "GraniteMoeDecoder":
        """Raises `ArchitectureError`."""
        num_experts = count(config, "num_local_experts", 8)
        return cls(
            parts=LlamaParts.from_config(config, context, "granitemoe"),
            multipliers=GraniteMultipliers.from_config(config),
            attention_bias=flag(config, "attention_bias", False),
            num_experts=num_experts,
            num_chosen=read_num_chosen(config, num_experts, 2),
            new_names=any(name.endswith("block_sparse_moe.router.weight") for name in context.tensor_names),
        )

    @property
    def geometry(self) -> Geometry:
        return self.parts.geometry

    def logits(self, ops: Ops[V]) -> V:
        """Logits of the wanted rows, (num_wanted, vocab_size)."""
        p, m, bias = self.parts, self.multipliers, self.attention_bias
        x = ops.scale(p.embedding(ops), m.embedding)
        for layer in range(self.geometry.num_layers):
            normed = p.norm(ops, x, f"model.layers.{layer}.input_layernorm")
            spec = attention_spec(self.geometry, layer, scale=m.attention)
            x = ops.add(x, ops.scale(p.attention(ops, normed, spec, input_bias=bias, output_bias=bias), m.residual))
            normed = p.norm(ops, x, f"model.layers.{layer}.post_attention_layernorm")
            x = ops.add(x, ops.scale(ops.moe(normed, self._mixture(layer)), m.residual))
        return ops.scale(p.head(ops, x), 1 / m.logits_scaling)

    def _mixture(self, layer: int) -> Mixture:
        p, name, hidden = self.parts, f"model.layers.{layer}.block_sparse_moe", self.geometry.hidden_size
        router, gate_up, down = (
            ("router.weight", "experts.gate_up_proj", "experts.down_proj")
            if self.new_names
            else ("router.layer.weight", "input_linear.weight", "output_linear.weight")
        )
        return Mixture(
            router=Weight(f"{name}.{router}", (self.num_experts, hidden)),
            experts=stacked_experts(
                f"{name}.{gate_up}", f"{name}.{down}", self.num_experts, hidden, p.intermediate_size
            ),
            num_chosen=self.num_chosen,
            normalize=True,
            activation=p.activation,
        )
