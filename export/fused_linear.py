"""A quantized product joined with its neighbours: the contracts of these nodes, and their stock bodies.

Contract. A name says what is joined, before the product and after it; the product is one of two:

    [Norm | Silu] PanelLinear [Bias] [Residual] _v1
    [Norm | Silu] BlockLinear [Bias] [Residual] _v1

    inputs   x             float  (T, K); for Silu (T, 2 K), the columns of gate before those of up
             weight, weight_scale: as for PanelLinear_v1 or BlockLinear_v1
             gain          float  (K,), for Norm
             bias          float  (N,), for Bias
             residual      float  (T, N), for Residual
    outputs  output        float  (T, N)
    attributes: those of BlockLinear_v1, where it is the product; epsilon, for Norm

    output = (PanelLinear_v1(rows, weight, weight_scale) + bias) + residual
    output = BlockLinear_v1(rows, weight, weight_scale, bias) + residual

each sum rounded to float32. rows is x; for Silu it is GatedSilu_v1 of x; for Norm it is, with squares and their sum in
float64 and every other step in float32,

    factor  = 1 / sqrt(sum_k x[t, k] ** 2 / K + epsilon)     in float64, then rounded to float32
    rows[t, k] = (x[t, k] * factor) * gain[k]

A kernel adds the squares up in 16 sums side by side, that of k % 16 in the order of k; then it adds the upper half of
the sums to the lower half until one is left. So it gives the same bits with any instructions, any number of threads and
any rows beside it; with Silu, the same as the kernels of GatedSilu_v1 and the product one after the other. The stock
body's norm and SiLU differ from a kernel's by rounding. Where x / scale is near a half, that moves the integer of an
input to the next one, so outputs differ by what rounding a few inputs the other way changes.

The bodies call the product and GatedSilu_v1, which are functions of the same model. The name carries the version: it
changes with anything said above, or with those three.
"""

from dataclasses import dataclass
from itertools import product
from typing import Any

from onnx import FunctionProto, helper

from export import block_linear, panel_linear
from export.gated_silu import OP_TYPE as GATED_SILU
from export.nodes import Nodes, Ref
from export.paged_attention import DOMAIN_VERSION, OPSET
from export.quantized_linear import INPUTS, OUTPUTS

__all__ = ["FORMS", "PRODUCTS", "Form", "Product"]


@dataclass(frozen=True, slots=True)
class Product:
    """op_type: with its version. inputs: x and the weights. takes_bias: whether it has an optional bias after them."""

    op_type: str
    inputs: tuple[str, ...]
    attributes: tuple[str, ...] = ()
    takes_bias: bool = False


_PANELS = Product(panel_linear.OP_TYPE, INPUTS)
_BLOCKS = Product(block_linear.OP_TYPE, block_linear.INPUTS[:3], block_linear.ATTRIBUTES, takes_bias=True)
PRODUCTS = (_PANELS, _BLOCKS)


@dataclass(frozen=True, slots=True)
class Form:
    """What is joined with a product; at most one of norm and silu."""

    product: Product = _PANELS
    norm: bool = False
    silu: bool = False
    bias: bool = False
    residual: bool = False

    @property
    def op_type(self) -> str:
        before = "Norm" if self.norm else "Silu" if self.silu else ""
        after = ("Bias" if self.bias else "") + ("Residual" if self.residual else "")
        name, version = self.product.op_type.split("_")
        return f"{before}{name}{after}_{version}"

    @property
    def inputs(self) -> tuple[str, ...]:
        further = {"gain": self.norm, "bias": self.bias, "residual": self.residual}
        return (*self.product.inputs, *(name for name, there in further.items() if there))

    @property
    def calls(self) -> tuple[str, ...]:
        """Functions of the model that the body calls."""
        return (self.product.op_type, GATED_SILU) if self.silu else (self.product.op_type,)

    @property
    def attributes(self) -> tuple[str, ...]:
        return (*self.product.attributes, "epsilon") if self.norm else self.product.attributes

    def function(self, domain: str) -> FunctionProto:
        """The model-local function."""
        body = Nodes()
        rows = "x"
        if self.norm:
            rows = body.add("RMSNormalization", ["x", "gain"], epsilon=Ref("epsilon", is_float=True))
        if self.silu:
            rows = body.add(GATED_SILU, ["x"], domain=domain)
        addends = [name for name in self.inputs if name in ("bias", "residual")]
        inputs = [rows, *self.product.inputs[1:]]
        if self.bias and self.product.takes_bias:
            inputs.append(addends.pop(0))
        attributes: dict[str, Any] = {name: Ref(name) for name in self.product.attributes}
        result = body.add(self.product.op_type, inputs, domain=domain, **attributes)
        for name in addends:
            result = body.add("Add", [result, name])
        body.rename(result, OUTPUTS[0])
        imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(domain, DOMAIN_VERSION)]
        return helper.make_function(domain, self.op_type, self.inputs, OUTPUTS, body.protos, imports, self.attributes)


FORMS = tuple(
    Form(kind, norm, silu, bias, residual)
    for kind in PRODUCTS
    for norm, silu, bias, residual in product((False, True), repeat=4)
    if not (norm and silu) and any((norm, silu, bias and not kind.takes_bias, residual))
)
"""All that there are, each with something joined that its product alone does not do."""
