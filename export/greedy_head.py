"""`nanovllm::GreedyHead_v1`: the contract of the node, its body out of stock operators, and how a graph gets it.

Contract. For each row the token that a greedy request gets: the arg-max of the logits of `QuantizedLinear_v1`, without
the logits.

    inputs   x             float  (T, K)
             weight        int8   (N, K)    as for QuantizedLinear_v1, N at least 1
             weight_scale  float  (N,)
             sketch        uint8  (N, B, BLOCK / 2), optional, B = K / BLOCK rounded up
             sketch_scale  float  (N, B), present where the sketch is
             sketch_step   float  (N,), likewise: the largest |sketch_scale| of each row
    outputs  ids           int64  (T,)
    attributes: none

ids[t] is the lowest n for which QuantizedLinear_v1's output[t, n] is the largest; no row has an influence on another.
The body computes the logits and does not read the sketch. The kernel needs the sketch to be right: it reads half the
bytes. It decides for few rows by the sketch, for many by the whole product, a panel of it at a time.

The sketch is the table times weight_scale in blocks of 4 bits (`export.quantize`), each number rounded up or down at
random with its own value as the mean (`export.sketch`). So with q the int8 numbers of x, the value that decides, which
is q . row n of the table, differs from q . row n of the sketch by a sum of independent errors of mean 0, the k-th
within an interval of length |q[k]| * step[n], whatever the table and x are: x cannot know what was drawn. By
Hoeffding's inequality (Journal of the American Statistical Association 58, 1963) the error is above

    bound[n] = c * |q| * step[n]         |q| = sqrt(sum_k q[k] ** 2)

with a probability of at most exp(-2 * c ** 2). Let `probe` be the exact value of any output. Whichever n has the
largest value has q . sketch row n + bound[n] >= probe, or its error is above its bound; so it is among the few
outputs for which that holds, and these are computed exactly. c is 4, for which the probability to miss it is 1.3e-14 a
token (the kernel takes 4.01: the 0.01 is more than float32 rounds off). In units of the spread of all logits the bound
is about 1.7 on normally distributed weights, where half a percent of the outputs are left; trained heads leave fewer.
Where more than a sixteenth is left, or the largest logit is not finite or is below 1e-30, all are computed exactly.

Weight scales up to 1e30. Rows of x that are not finite have no specified result but an index. The name carries the
version: it changes with anything said above.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import FunctionProto, NodeProto, helper

from export.nodes import Nodes
from export.paged_attention import DOMAIN, OPSET
from export.quantize import BLOCK, num_blocks
from export.quantized_linear import OP_TYPE as QUANTIZED_LINEAR
from export.sketch import sketch_rows
from export.weight_plan import WeightPlan

__all__ = ["IDS", "INDICES", "INPUTS", "OP_TYPE", "OUTPUTS", "add_greedy_head", "greedy_head_function"]

OP_TYPE = "GreedyHead_v1"
INPUTS = ("x", "weight", "weight_scale", "sketch", "sketch_scale", "sketch_step")
OUTPUTS = ("ids",)
INDICES, IDS = "greedy_indices", "greedy_ids"
"""The graph's input, int32 (num_greedy,): packed token indices; and its output, int64 (num_greedy,)."""

_LOGITS_INDICES = "logits_indices"
_SEED = 20_251_121
_SLICE_BYTES = 2**20  # of int8 rows that are sketched at once


def greedy_head_function(domain: str) -> FunctionProto:
    """The model-local function."""
    body = Nodes()
    # Reshaped in vain: where two products share an initializer, ONNX Runtime 1.31 does not load the graph with
    # session.x64quantprecision = 1, because it would replace that initializer twice.
    table = body.add("Reshape", ["weight", body.ints(0, -1)])
    body.add_many(QUANTIZED_LINEAR, ["x", table, "weight_scale"], ["logits"], domain=domain)
    body.add("ArgMax", ["logits"], "ids", axis=1, keepdims=0, select_last_index=0)
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(domain, 1)]
    return helper.make_function(domain, OP_TYPE, INPUTS, OUTPUTS, body.protos, imports)


def add_greedy_head(nodes: Nodes, plan: WeightPlan, logits: str, *, sketch: bool) -> bool:
    """Adds the nodes from `INDICES` to `IDS`, and the sketch, where the graph's head goes with them.

    logits: the graph's logits. Where they are not just what a `QuantizedLinear_v1` gives, nothing is added and the
    answer is False: another format, a bias, or a cap or factor by rounding of which different values may become equal.
    """
    head = next(node for node in nodes.protos if logits in node.output)
    if (head.domain, head.op_type) != (DOMAIN, QUANTIZED_LINEAR):
        return False
    names = {_LOGITS_INDICES: INDICES}
    for node in _between(nodes, head):
        nodes.again(node, names)
    weight, weight_scale = head.input[1:]
    parts = _planned_sketch(plan, weight, weight_scale) if sketch else ()
    nodes.add_many(OP_TYPE, [names[head.input[0]], weight, weight_scale, *parts], [IDS], domain=DOMAIN)
    return True


def _between(nodes: Nodes, head: NodeProto) -> Iterator[NodeProto]:
    """The nodes that lead from the indices of the wanted rows to the head, which is not among them."""
    reached = {_LOGITS_INDICES}
    for node in list(nodes.protos):
        if node is head:
            return
        if reached.intersection(node.input):
            reached.update(node.output)
            yield node


def _planned_sketch(plan: WeightPlan, weight: str, weight_scale: str) -> tuple[str, str, str]:
    num_out, num_in = plan.tensors[weight].shape
    blocks = num_blocks(num_in)
    parts = _Sketch(plan, weight, weight_scale)
    name = f"{weight}.sketch"
    return (
        plan.add(name, (num_out, blocks, BLOCK // 2), parts.integers, np.uint8),
        plan.add(f"{name}.scale", (num_out, blocks), parts.scales),
        plan.add(f"{name}.step", (num_out,), parts.steps),
    )


class _Sketch:
    """A table's sketch, made of its rows in the file: integers are written first, scales are kept for after them."""

    def __init__(self, plan: WeightPlan, weight: str, weight_scale: str) -> None:
        self._rows = partial(plan.written, weight, _SLICE_BYTES)
        self._row_scales = partial(plan.written, weight_scale, _SLICE_BYTES)
        self._scales: list[npt.NDArray[Any]] = []

    def integers(self) -> Iterator[npt.NDArray[Any]]:
        self._scales = []
        random = np.random.default_rng(_SEED)
        for rows in self._rows():
            integers, scales = sketch_rows(rows, random)
            self._scales.append(scales)
            yield integers
        row_scales = np.concatenate(list(self._row_scales()))
        self._scales = [np.concatenate(self._scales) * row_scales[:, None]]

    def scales(self) -> Iterator[npt.NDArray[Any]]:
        yield from self._scales

    def steps(self) -> Iterator[npt.NDArray[Any]]:
        scales, self._scales = self._scales, []
        for part in scales:
            yield np.abs(part).max(1)
