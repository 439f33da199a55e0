"""The experts of a mixture in the layouts of checkpoints: a tensor each, or all of them stacked in two tensors."""

from nanovllm.architectures.config_fields import Config, count
from nanovllm.architectures.errors import ArchitectureError
from nanovllm.architectures.layers import gated_layers, rows
from nanovllm.architectures.ops import GatedMLP, Linear, Weight

__all__ = ["read_num_chosen", "separate_experts", "stacked_experts"]


def read_num_chosen(config: Config, num_experts: int, default: int) -> int:
    """num_experts_per_tok. Raises `ArchitectureError`."""
    num_chosen = count(config, "num_experts_per_tok", default)
    if num_chosen > num_experts:
        raise ArchitectureError(f"num_experts_per_tok is {num_chosen}; there are only {num_experts} experts.")
    return num_chosen


def separate_experts(name: str, num_experts: int, hidden: int, inner: int) -> tuple[GatedMLP, ...]:
    """Experts `name`.0, `name`.1, ..., each with gate_proj, up_proj and down_proj."""
    return tuple(gated_layers(f"{name}.{i}", hidden, inner) for i in range(num_experts))


def stacked_experts(gate_up: str, down: str, num_experts: int, hidden: int, inner: int) -> tuple[GatedMLP, ...]:
    """Experts whose gates and ups are the tensor `gate_up`, (num_experts, 2 * inner, hidden), gates first, and whose
    downs are the tensor `down`, (num_experts, hidden, inner)."""
    gates_and_ups = Weight(gate_up, (num_experts, 2 * inner, hidden))
    downs = Weight(down, (num_experts, hidden, inner))

    def expert(i: int) -> GatedMLP:
        gate, up = (2 * i * inner, (2 * i + 1) * inner), ((2 * i + 1) * inner, (2 * i + 2) * inner)
        return GatedMLP(
            gate=Linear(rows(gates_and_ups, gate)),
            up=Linear(rows(gates_and_ups, up)),
            down=Linear(rows(downs, (i * hidden, (i + 1) * hidden))),
        )

    return tuple(expert(i) for i in range(num_experts))
