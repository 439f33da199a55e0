"""`nanovllm::QuantizedLinear_v1`: the contract of the node, and its body out of stock operators.

Contract. A linear layer without bias whose weights are int8 with a scale for each output feature, and whose input is
quantized to int8 row by row, so that no row's result depends on another's.

    inputs   x             float  (T, K)
             weight        int8   (N, K), -127 .. 127; as in the checkpoint, so a table of embeddings can share it
             weight_scale  float  (N,)
    outputs  output        float  (T, N)
    attributes: none

Row t of the output is, every step rounded to float32 except the sum, which is exact in int32:

    largest = max(max_k |x[t, k]|, 1e-30)           the bound keeps a row of zeros from dividing by zero
    scale   = largest * (1 / 127)                   with 1 / 127 rounded to float32
    q[k]    = round(x[t, k] / scale)                halves to even; -127 .. 127
    output[t, n] = (float(sum_k q[k] * weight[n, k]) * weight_scale[n]) * scale

A kernel must give these values bit for bit, so that a model answers alike with and without it, whatever else is in the
batch. Rows that are not finite have no specified result. K is at most 2 ** 31 / 127 ** 2, about 133,000. The name
carries the version: it changes with anything said above.

The stock body quantizes to uint8 around 128, because ONNX Runtime multiplies uint8 by int8 fast on x64 and int8 by int8
slowly; the product takes the 128 out again exactly. It transposes the weight, which ONNX Runtime does once, at load. On
x64 processors without VNNI the sums of uint8 by int8 saturate unless the session sets session.x64quantprecision = 1.
"""

from onnx import FunctionProto, TensorProto, helper

from export.nodes import Nodes
from export.paged_attention import OPSET
from export.quantize import INT8_MAX, SMALLEST

__all__ = ["IMPORTS", "INPUTS", "MICROSOFT_DOMAIN", "OP_TYPE", "OUTPUTS", "add_product", "quantized_linear_function"]

OP_TYPE = "QuantizedLinear_v1"
INPUTS = ("x", "weight", "weight_scale")
OUTPUTS = ("output",)
MICROSOFT_DOMAIN = "com.microsoft"
IMPORTS = (helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT_DOMAIN, 1))
_ZERO = 128


def quantized_linear_function(domain: str) -> FunctionProto:
    """The model-local function."""
    body = Nodes()
    add_product(body, body.add("Transpose", ["weight"], perm=[1, 0]))
    return helper.make_function(domain, OP_TYPE, INPUTS, OUTPUTS, body.protos, IMPORTS)


def add_product(body: Nodes, weight: str) -> None:
    """Adds the nodes from "x" and "weight_scale" to "output" to a body. weight: name of the weights, (K, N)."""
    magnitude = body.add("ReduceMax", [body.add("Abs", ["x"]), body.ints(1)], keepdims=1)  # (T, 1)
    largest = body.add("Max", [magnitude, body.number(SMALLEST)])
    scale = body.add("Mul", [largest, body.number(1 / INT8_MAX)])
    one = body.number(1.0)
    zero = body.add("Constant", [], value=helper.make_tensor("zero", TensorProto.UINT8, [], [_ZERO]))
    quantized = body.add("QuantizeLinear", [body.add("Div", ["x", scale]), one, zero])
    body.add_many(
        "MatMulIntegerToFloat",
        [quantized, weight, one, "weight_scale", zero],
        ["product"],
        domain=MICROSOFT_DOMAIN,
    )
    body.add("Mul", ["product", scale], "output")
