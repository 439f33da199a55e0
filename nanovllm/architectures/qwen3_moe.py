"""Qwen3 with a mixture of experts: Qwen3's attention, and in most layers experts in place of the MLP.

A token's shares are the softmax over all experts, of which the largest count, divided by their sum where norm_topk_prob
is on. Source of the definition: the technical report (arXiv 2505.09388) and the published config.json files.
"""

from dataclasses import dataclass
from typing import TypeVar

from nanovllm.architectures.config_fields import Config, count, flag
from nanovllm.architectures.errors import ArchitectureError
from nanovllm.architectures.experts import read_num_chosen, separate_experts, stacked_experts
from nanovllm.architectures.geometry import Context, Windows, attention_spec
from nanovllm.architectures.llama_parts import LlamaParts
from nanovllm.architectures.ops import Geometry, Mixture, Ops, Weight
from nanovllm.architectures.qwen_windows import qwen_windows

__all__ = ["Qwen3MoeDecoder"]

V = TypeVar("V")


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen3MoeDecoder:
    """attention_bias: of all four projections of attention. dense_layers: those with an MLP. expert_size: inner
    features of an expert. stacked: whether the checkpoint keeps the experts of a layer in two tensors."""

    parts: LlamaParts
    windows: Windows
    attention_bias: bool
    dense_layers: frozenset[int]
    num_experts: int
    num_chosen: int
    normalize: bool
    expert_size: int
    stacked: bool

    @classmethod
    def from_config(cls, config: Config, context: Context) -> "Qwen3MoeDecoder":
        """Raises `ArchitectureError`."""
        parts = LlamaParts.from_config({"num_key_value_heads": 4, **config}, context, "qwen3_moe")
        num_experts = count(config, "num_experts", count(config, "num_local_experts", 128))  # as transformers 5 has it
        return cls(
            parts=parts,
            windows=qwen_windows(config, parts.geometry.num_layers, first=0),
            attention_bias=flag(config, "attention_bias", False),
            dense_layers=_dense_layers(config, parts.geometry.num_layers),
            num_experts=num_experts,
            num_chosen=read_num_chosen(config, num_experts, 8),
            normalize=flag(config, "norm_topk_prob", False),
            expert_size=count(config, "moe_intermediate_size", 768),
            stacked=any(name.endswith(".mlp.experts.gate_up_proj") for name in context.tensor_names),
        )

    @property
    def geometry(self) -> Geometry:
        return self.parts.geometry

    def logits(self, ops: Ops[V]) -> V:
        """Logits of the wanted rows, (num_wanted, vocab_size)."""
        p, bias = self.parts, self.attention_bias
        x = p.embedding(ops)
        for layer, window in enumerate(self.windows):
            normed = p.norm(ops, x, f"model.layers.{layer}.input_layernorm")
            spec = attention_spec(self.geometry, layer, window=window)
            x = ops.add(x, p.attention(ops, normed, spec, input_bias=bias, output_bias=bias, head_norms=True))
            normed = p.norm(ops, x, f"model.layers.{layer}.post_attention_layernorm")
            dense = layer in self.dense_layers
            x = ops.add(x, p.mlp(ops, normed, layer) if dense else ops.moe(normed, self._mixture(layer)))
        return p.head(ops, x)

    def _mixture(self, layer: int) -> Mixture:
        name, hidden = f"model.layers.{layer}.mlp", self.geometry.hidden_size
        sizes = (self.num_experts, hidden, self.expert_size)
        return Mixture(
            router=Weight(f"{name}.gate.weight", (self.num_experts, hidden)),
            experts=stacked_experts(f"{name}.experts.gate_up_proj", f"{name}.experts.down_proj", *sizes)
            if self.stacked
            else separate_experts(f"{name}.experts", *sizes),
            num_chosen=self.num_chosen,
            normalize=self.normalize,
            activation=self.parts.activation,
        )


def _dense_layers(config: Config, num_layers: int) -> frozenset[int]:
    """Layers of mlp_only_layers, and all but every decoder_sparse_step-th."""
    given = config.get("mlp_only_layers") or []
    if not isinstance(given, list) or not all(isinstance(layer, int) for layer in given):
        raise ArchitectureError(f"mlp_only_layers is {given!r}; it must be a list of numbers of layers.")
    step = count(config, "decoder_sparse_step", 1)
    return frozenset(given) | {layer for layer in range(num_layers) if (layer + 1) % step}
