"""`Ops` in torch: every call binds an operation to its weights and appends it to a program.

In: a decoder, weights, and what the device brings (linear layers, attention, norms and activations). Out: `Program`.
Knows no engine and no checkpoint file.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from backends.pytorch.attention import PagedAttention
from backends.pytorch.experts import Experts
from backends.pytorch.linear import LinearLayer, MakeLinear
from backends.pytorch.merging import merge_head_norms, merge_norms
from backends.pytorch.operations import Add, Attend, RMSNorm, WantedRows
from backends.pytorch.parallel.collective import Collective
from backends.pytorch.parallel.divided_ops import DividedOps
from backends.pytorch.pointwise import PointwiseOps
from backends.pytorch.program import Instruction, Operation, Program, StepInputs
from backends.pytorch.weights import Weights
from nanovllm.architectures import Activation, AttentionSpec, Decoder, Ids, Linear, Mixture, Rope, Shard, Weight

__all__ = ["record"]


def record(
    decoder: Decoder,
    weights: Weights,
    attention: PagedAttention[Any],
    make_linear: MakeLinear,
    pointwise: PointwiseOps,
    collective: Collective | None = None,
) -> tuple[Program, list[Rope]]:
    """The program of `decoder` and the ropes whose rotations its steps need. Raises `CheckpointError`.

    collective: the ranks among which the decoder is divided, if it is; the program is that of one of them.
    """
    ops = _TorchOps(weights, attention, make_linear, pointwise)
    with torch.inference_mode():
        result = decoder.logits(ops if collective is None else DividedOps(ops, collective))
    instructions = merge_head_norms(merge_norms(ops.instructions, pointwise))
    last_write = max(i for i, made in enumerate(instructions) if isinstance(made.operation, Attend))
    head = next(i for i, made in enumerate(instructions) if isinstance(made.operation, WantedRows))
    program = Program(instructions, result, last_write=last_write, head=head, is_static=not ops.looks_at_values)
    return program, list(ops.ropes)


class _TorchOps:
    """`Ops` on places of values in a program."""

    def __init__(
        self, weights: Weights, attention: PagedAttention[Any], make_linear: MakeLinear, pointwise: PointwiseOps
    ) -> None:
        self._weights = weights
        self._attention = attention
        self._make_linear = make_linear
        self._pointwise = pointwise
        self._num_places = 0
        self.instructions: list[Instruction] = []
        self.ropes: dict[Rope, int] = {}
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
        return self._add(RMSNorm(gain, eps, groups, self._pointwise.rms_norm(gain, eps, groups)), x)[0]

    def layer_norm(self, x: int, weight: Weight, bias: Weight | None, *, eps: float) -> int:
        gain, shift = self._weights.vector(weight), None if bias is None else self._weights.vector(bias)
        return self._add_one(self._pointwise.layer_norm(gain, shift, eps), x)

    def attention(self, query: int, key: int, value: int, spec: AttentionSpec) -> int:
        rope = None if spec.rope is None else self.ropes.setdefault(spec.rope, len(self.ropes))
        return self._add(Attend(self._attention, spec, rope, self._attention.attend), query, key, value)[0]

    def activation(self, x: int, kind: Activation) -> int:
        return self._add_one(self._pointwise.activation(kind), x)

    def gated(self, gate: int, up: int, kind: Activation) -> int:
        return self._add_one(self._pointwise.gated(kind), gate, up)

    def moe(self, x: int, mixture: Mixture) -> int:
        self.looks_at_values = True  # how many tokens each expert has
        router = self._weights.merged([mixture.router])
        merged = [(self._merged([e.gate, e.up], "column"), self._merged([e.down], "row")) for e in mixture.experts]
        return self._add_one(Experts(router, merged, mixture, self._pointwise.gated(mixture.activation)), x)

    def add(self, a: int, b: int) -> int:
        return self._add(Add(), a, b)[0]

    def scale(self, x: int, factor: float) -> int:
        return self._add_one(lambda x: x * factor, x)

    def softcap(self, x: int, cap: float) -> int:
        return self._add_one(lambda x: (x / cap).tanh_().mul_(cap), x)

    def wanted_rows(self, x: int) -> int:
        return self._add(WantedRows(), x)[0]
