"""`Ops` in torch: every call binds an operation to its weights and appends it to a program.

In: a decoder, weights, and what the device brings (linear layers, attention). Out: `Program`. Knows no engine and no
checkpoint file.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from backends.pytorch.attention import PagedAttention
from backends.pytorch.cpu_norm import CPURMSNorm
from backends.pytorch.experts import Experts
from backends.pytorch.fusion import Fuse, unfused
from backends.pytorch.linear import LinearLayer, MakeLinear
from backends.pytorch.parallel.collective import Collective
from backends.pytorch.parallel.divided_ops import DividedOps
from backends.pytorch.program import Instruction, Operation, Program, StepInputs
from backends.pytorch.weights import Weights
from nanovllm.architectures import Activation, AttentionSpec, Decoder, Ids, Linear, Mixture, Rope, Shard, Weight

__all__ = ["activate", "record"]


def record(
    decoder: Decoder,
    weights: Weights,
    attention: PagedAttention[Any],
    make_linear: MakeLinear,
    collective: Collective | None = None,
    *,
    fuse: Fuse = unfused,
) -> tuple[Program, list[Rope]]:
    """The program of `decoder` and the ropes whose rotations its steps need. Raises `CheckpointError`.

    collective: the ranks among which the decoder is divided, if it is; the program is that of one of them.
    """
    ops = _TorchOps(weights, attention, make_linear, fuse)
    with torch.inference_mode():
        result = decoder.logits(ops if collective is None else DividedOps(ops, collective))
    program = Program(
        ops.instructions, result, last_write=ops.last_write, head=ops.head, is_static=not ops.looks_at_values
    )
    return program, list(ops.ropes)


def activate(x: Tensor, kind: Activation) -> Tensor:
    """`kind` element by element; a new tensor."""
    if kind == "silu":
        return F.silu(x)
    return F.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")


class _TorchOps:
    """`Ops` on places of values in a program."""

    def __init__(self, weights: Weights, attention: PagedAttention[Any], make_linear: MakeLinear, fuse: Fuse) -> None:
        self._weights = weights
        self._attention = attention
        self._make_linear = make_linear
        self._fuse = fuse
        self._num_places = 0
        self.instructions: list[Instruction] = []
        self.ropes: dict[Rope, int] = {}
        self.last_write = self.head = -1
        self.looks_at_values = False

    def _add(self, operation: Operation, *inputs: int, num_outputs: int = 1) -> tuple[int, ...]:
        outputs = tuple(range(self._num_places, self._num_places + num_outputs))
        self._num_places += num_outputs
        self.instructions.append(Instruction(operation, inputs, outputs))
        return outputs

    def _add_one(self, compute: Callable[..., Tensor], *inputs: int) -> int:
        """An operation of one result that reads nothing of the step."""
        return self._add(lambda _, *values: (compute(*values),), *inputs)[0]

    def apply(self, compute: Callable[[Tensor], Tensor], x: int) -> int:
        """An operation of one value that no architecture declares."""
        return self._add_one(compute, x)

    def embedding(self, table: Weight, ids: Ids) -> int:
        rows, dtype = self._weights.table(table), self._weights.dtype

        def look_up(step: StepInputs) -> tuple[Tensor]:
            return (F.embedding(step.token_ids if ids == "token_ids" else step.positions, rows).to(dtype),)

        return self._add(look_up)[0]

    def linear(self, x: int, layers: Sequence[Linear], *, shard: Shard) -> tuple[int, ...]:
        layer, sizes = self._merged(layers, shard), [layer.weight.shape[0] for layer in layers]
        if len(sizes) == 1:
            return (self._add_one(layer, x),)
        return self._add(lambda _, x: torch.split(layer(x), sizes, 1), x, num_outputs=len(sizes))

    def _merged(self, layers: Sequence[Linear], shard: Shard) -> LinearLayer:
        """The layers as one; those without a bias get one of zeros where another has one."""
        weight = self._weights.merged([layer.weight for layer in layers])
        if all(layer.bias is None for layer in layers):
            return self._make_linear(weight, None, shard)
        biases = [
            weight.new_zeros(layer.weight.shape[0]) if layer.bias is None else self._weights.merged([layer.bias])
            for layer in layers
        ]
        return self._make_linear(weight, torch.cat(biases), shard)

    def rms_norm(self, x: int, weight: Weight, *, eps: float, offset: float = 0.0, groups: int = 1) -> int:
        gain = self._weights.vector(weight, offset)
        if gain.device.type == "cpu":
            return self._add_one(CPURMSNorm(gain, eps, groups), x)

        def norm(x: Tensor) -> Tensor:
            parts = x.float() if groups == 1 else x.float().view(len(x), groups, -1)
            return F.rms_norm(parts, gain.shape, gain, eps).view(x.shape).to(x.dtype)

        return self._add_one(self._fuse(norm), x)

    def layer_norm(self, x: int, weight: Weight, bias: Weight | None, *, eps: float) -> int:
        gain, shift = self._weights.vector(weight), None if bias is None else self._weights.vector(bias)
        return self._add_one(self._fuse(lambda x: F.layer_norm(x.float(), gain.shape, gain, shift, eps).to(x.dtype)), x)

    def attention(self, query: int, key: int, value: int, spec: AttentionSpec) -> int:
        attend = self._attention.attend
        rope = None if spec.rope is None else self.ropes.setdefault(spec.rope, len(self.ropes))

        def run(step: StepInputs, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor]:
            rotation = None if rope is None else step.rotations[rope]
            return (attend(step.attention_plan, spec, rotation, query, key, value),)

        self.last_write = len(self.instructions)
        return self._add(run, query, key, value)[0]

    def activation(self, x: int, kind: Activation) -> int:
        return self._add_one(self._fuse(lambda x: activate(x, kind)), x)

    def gated(self, gate: int, up: int, kind: Activation) -> int:
        return self._add_one(self._fuse(lambda gate, up: activate(gate, kind).mul_(up)), gate, up)

    def moe(self, x: int, mixture: Mixture) -> int:
        self.looks_at_values = True  # how many tokens each expert has
        router = self._weights.merged([mixture.router])
        merged = [(self._merged([e.gate, e.up], "column"), self._merged([e.down], "row")) for e in mixture.experts]
        return self._add_one(Experts(router, merged, mixture, lambda x: activate(x, mixture.activation)), x)

    def add(self, a: int, b: int) -> int:
        return self._add_one(torch.add, a, b)

    def scale(self, x: int, factor: float) -> int:
        return self._add_one(lambda x: x * factor, x)

    def softcap(self, x: int, cap: float) -> int:
        return self._add_one(lambda x: (x / cap).tanh_().mul_(cap), x)

    def wanted_rows(self, x: int) -> int:
        rows = self._add(lambda step, x: (x.index_select(0, step.wanted),), x)[0]
        self.head = len(self.instructions) - 1
        return rows
