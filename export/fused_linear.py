"""`nanovllm::QuantizedLinear_v1` joined with its neighbours: the contracts of these nodes, and their stock bodies.

Contract. A name says what is joined, before the product and after it:

    [Norm | Silu] QuantizedLinear [Bias] [Residual] _v1

    inputs   x             float  (T, K); for Silu (T, 2 K), the columns of gate before those of up
             weight        int8   (N, K), and weight_scale float (N,): as in `export.quantized_linear`
             gain          float  (K,), for Norm
             bias          float  (N,), for Bias
             residual      float  (T, N), for Residual
    outputs  output        float  (T, N)
    attributes: epsilon, for Norm

    output = (QuantizedLinear_v1(rows, weight, weight_scale) + bias) + residual

each sum rounded to float32. rows is x; for Silu it is GatedSilu_v1 of x; for Norm it is, with squares and their sum in
float64 and every other step in float32,

    factor  = 1 / sqrt(sum_k x[t, k] ** 2 / K + epsilon)     in float64, then rounded to float32
    rows[t, k] = (x[t, k] * factor) * gain[k]

A kernel adds the squares up in 16 sums side by side, that of k % 16 in the order of k; then it adds the upper half of
the sums to the lower half until one is left. So it gives the same bits with any instructions, any number of threads and
any rows beside it; with Silu, the same as the kernels of GatedSilu_v1 and QuantizedLinear_v1 one after the other. The
stock body's norm and SiLU differ from a kernel's by rounding. Where x / scale is near a half, that moves the
integer of an input to the next one, so outputs differ by what rounding a few inputs the other way changes.

The bodies call QuantizedLinear_v1 and GatedSilu_v1, which are functions of the same model. The name carries the
version: it changes with anything said above, or with those two.
"""

from dataclasses import dataclass
from itertools import product

from onnx import FunctionProto, helper

from export.gated_silu import OP_TYPE as GATED_SILU
from export.nodes import Nodes, Ref
from export.paged_attention import DOMAIN_VERSION, OPSET
from export.quantized_linear import INPUTS, OUTPUTS
from export.quantized_linear import OP_TYPE as QUANTIZED_LINEAR

__all__ = ["FORMS", "Form"]


@dataclass(frozen=True, slots=True)
class Form:
    """What is joined with a product; at most one of norm and silu."""

    norm: bool = False
    silu: bool = False
    bias: bool = False
    residual: bool = False

    @property
    def op_type(self) -> str:
        before = "Norm" if self.norm else "Silu" if self.silu else ""
        after = ("Bias" if self.bias else "") + ("Residual" if self.residual else "")
        return QUANTIZED_LINEAR.replace("QuantizedLinear", f"{before}QuantizedLinear{after}")

    @property
    def inputs(self) -> tuple[str, ...]:
        further = {"gain": self.norm, "bias": self.bias, "residual": self.residual}
        return (*INPUTS, *(name for name, there in further.items() if there))

    @property
    def calls(self) -> tuple[str, ...]:
        """Functions of the model that the body calls."""
        return (QUANTIZED_LINEAR, GATED_SILU) if self.silu else (QUANTIZED_LINEAR,)

    def function(self, domain: str) -> FunctionProto:
        """The model-local function."""
        body = Nodes()
        rows = "x"
        if self.norm:
            rows = body.add("RMSNormalization", ["x", "gain"], epsilon=Ref("epsilon", is_float=True))
        if self.silu:
            rows = body.add(GATED_SILU, ["x"], domain=domain)
        result = body.add(QUANTIZED_LINEAR, [rows, *INPUTS[1:]], domain=domain)
        for name in self.inputs:
            if name in ("bias", "residual"):
                result = body.add("Add", [result, name])
        body.rename(result, OUTPUTS[0])
        imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(domain, DOMAIN_VERSION)]
        attributes = ["epsilon"] if self.norm else []
        return helper.make_function(domain, self.op_type, self.inputs, OUTPUTS, body.protos, imports, attributes)


FORMS = tuple(
    Form(norm, silu, bias, residual)
    for norm, silu, bias, residual in product((False, True), repeat=4)
    if not (norm and silu) and any((norm, silu, bias, residual))
)
"""All that there are, each with something joined."""
