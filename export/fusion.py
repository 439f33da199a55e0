"""A pass over recorded nodes: quantized products take in the norm or gated SiLU before them and the additions after.

In: the nodes of a graph. Out: the same with those of `export.fused_linear`. What is taken in is what products alone
read: a result that something else reads too stays a value, with the node that makes it. Knows nothing about
architectures; what matches no form stays as it is.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from onnx import NodeProto, helper

from export.fused_linear import Form
from export.gated_silu import OP_TYPE as GATED_SILU
from export.nodes import Nodes
from export.paged_attention import DOMAIN
from export.quantized_linear import OP_TYPE as QUANTIZED_LINEAR

__all__ = ["fuse_products"]


def fuse_products(nodes: Nodes, vectors: Collection[str], outputs: Collection[str]) -> None:
    """Fuses in place; drops what is no longer read.

    vectors: names of the weights of one axis, which are biases where they are added to a product. outputs: of the
    graph. A product that gives one of these stays as it is: it has few rows, so fusing it would save little.
    """
    for product in list(nodes.protos):
        if _is_product(product):
            _fuse(nodes, product, vectors, outputs)
    nodes.drop_unread(outputs)


def _is_product(node: NodeProto) -> bool:
    return bool(node.domain == DOMAIN and node.op_type == QUANTIZED_LINEAR)


def _fuse(nodes: Nodes, product: NodeProto, vectors: Collection[str], outputs: Collection[str]) -> None:
    """Puts a fused node into the place of the last of those that it takes in, where all its inputs are there."""
    taken = [product]
    added: dict[str, str] = {}
    for name in ("bias", "residual"):
        addition = _addition(nodes, taken[-1].output[0], outputs)
        if addition is None:
            continue
        addend = next(value for value in addition.input if value != taken[-1].output[0])
        if (addend in vectors) == (name == "bias"):
            taken.append(addition)
            added[name] = addend
    if taken[-1].output[0] in outputs:
        return
    x, gain, attributes, form = _source(nodes, product)
    form = replace(form, bias="bias" in added, residual="residual" in added)
    if form == Form():
        return
    inputs = [x, *product.input[1:], *gain, *added.values()]
    output = taken[-1].output[0]
    fused = helper.make_node(form.op_type, inputs, [output], name=output, domain=DOMAIN, **attributes)
    nodes.protos[nodes.protos.index(taken[-1])] = fused
    for node in taken[:-1]:
        nodes.protos.remove(node)


def _addition(nodes: Nodes, value: str, outputs: Collection[str]) -> NodeProto | None:
    """The node that adds something else to `value`, where nothing but that reads it."""
    readers = _readers(nodes, value)
    if value in outputs or len(readers) != 1 or readers[0].op_type != "Add" or set(readers[0].input) == {value}:
        return None
    return readers[0]


def _source(nodes: Nodes, product: NodeProto) -> tuple[str, list[str], dict[str, Any], Form]:
    """What the product is fused with before it: its input, the norm's gain and attributes, and the form so far."""
    x = product.input[0]
    maker = next((node for node in nodes.protos if x in node.output), None)
    if maker is not None and all(_is_product(reader) for reader in _readers(nodes, x)):
        if maker.op_type == "RMSNormalization":
            attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in maker.attribute}
            return maker.input[0], [maker.input[1]], attributes, Form(norm=True)
        if maker.domain == DOMAIN and maker.op_type == GATED_SILU:
            return maker.input[0], [], {}, Form(silu=True)
    return x, [], {}, Form()


def _readers(nodes: Nodes, value: str) -> list[NodeProto]:
    return [node for node in nodes.protos if value in node.input]
