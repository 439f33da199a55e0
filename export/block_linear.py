"""`nanovllm::BlockLinear_v1`: the contract of the node, and its body out of stock operators.

Contract. A linear layer whose weights are integers of 4 or 8 bits with a scale for each `BLOCK` numbers of a row, and
whose input is quantized to int8 in the same blocks, so that no row's result depends on another's.

    inputs   x             float  (T, K)
             weight        uint8  (N, B, BLOCK * bits / 8), B = K / BLOCK rounded up: as `export.quantize` lays it out
             weight_scale  float  (N, B)
             bias          float  (N,), optional
    outputs  output        float  (T, N)
    attributes  N, K, bits (4 or 8)

With x padded by zeros to B * BLOCK numbers and weight[n, b, i] the integer i of a block, minus 2 ** (bits - 1), row t
of the output is, every step rounded to float32 except the sums of a block, which are exact:

    largest[b] = max(max_i |x[t, b, i]|, 1e-30)      the bound keeps a block of zeros from dividing by zero
    scale[b]   = largest[b] * (1 / 127)              with 1 / 127 rounded to float32
    q[b, i]    = round(x[t, b, i] / scale[b])        halves to even; -127 .. 127
    sum[b]     = sum_i q[b, i] * weight[n, b, i]
    output[t, n] = (((0 + float(sum[0]) * (weight_scale[n, 0] * scale[0])) + float(sum[1]) * ...) + ...) + bias[n]

A kernel gives these values bit for bit, with any instructions and any number of threads. The stock body is MatMulNBits
with accuracy_level 4, which quantizes alike but adds up in orders of its own, other ones for one row than for several:
its values differ from a kernel's by what float32 rounds off B additions, or, where x / scale is near a half and is
rounded to the other side, by one unit of q. Rows that are not finite have no specified result. The name carries the
version: it changes with anything said above.
"""

from onnx import FunctionProto, helper

from export.nodes import Nodes, Ref
from export.paged_attention import OPSET
from export.quantize import BLOCK
from export.quantized_linear import MICROSOFT_DOMAIN

__all__ = ["ATTRIBUTES", "INPUTS", "OP_TYPE", "OUTPUTS", "block_linear_function"]

OP_TYPE = "BlockLinear_v1"
INPUTS = ("x", "weight", "weight_scale", "bias")
OUTPUTS = ("output",)
ATTRIBUTES = ("N", "K", "bits")


def block_linear_function(domain: str) -> FunctionProto:
    """The model-local function."""
    body = Nodes()
    body.add_many(
        "MatMulNBits",
        ["x", "weight", "weight_scale", "", "", "bias"],  # between them: zero points and an order of the inputs
        ["output"],
        domain=MICROSOFT_DOMAIN,
        block_size=BLOCK,
        accuracy_level=4,  # int8 arithmetic; left out, it would be float32 and several times slower
        **{name: Ref(name) for name in ATTRIBUTES},
    )
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT_DOMAIN, 1)]
    return helper.make_function(domain, OP_TYPE, INPUTS, OUTPUTS, body.protos, imports, ATTRIBUTES)
