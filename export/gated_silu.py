"""`nanovllm::GatedSilu_v1`: the contract of the node, and its body out of stock operators.

Contract. What stands between the two products of a gated feed-forward layer whose activation is SiLU, on the merged
product of gate and up as it is, so that nothing is copied apart.

    inputs   gate_up  float  (T, 2 F), the columns of gate before those of up
    outputs  output   float  (T, F)
    attributes: none

    output[t, f] = gate[t, f] * sigmoid(gate[t, f]) * up[t, f]

An element depends on its own two inputs only, to the last bit. A kernel's sigmoid is within 5e-7 of the exact one, as
that of ONNX Runtime is; so outputs differ between the two by at most 2e-6 * |gate * up|. The activation is part of the
name, because the body of a function cannot choose by an attribute. The name carries the version: it changes with
anything said above.
"""

from onnx import FunctionProto, helper

from export.nodes import Nodes
from export.paged_attention import OPSET

__all__ = ["INPUTS", "OP_TYPE", "OUTPUTS", "gated_silu_function"]

OP_TYPE = "GatedSilu_v1"
INPUTS = ("gate_up",)
OUTPUTS = ("output",)


def gated_silu_function(domain: str) -> FunctionProto:
    """The model-local function."""
    body = Nodes()
    body.add_many("Split", ["gate_up"], ["gate", "up"], axis=1, num_outputs=2)
    activated = body.add("Mul", ["gate", body.add("Sigmoid", ["gate"])])  # ONNX Runtime makes these two one
    body.add("Mul", [activated, "up"], "output")
    return helper.make_function(domain, OP_TYPE, INPUTS, OUTPUTS, body.protos, [helper.make_opsetid("", OPSET)])
