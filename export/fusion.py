"""A pass over recorded nodes: quantized products take in the norm or gated SiLU before them and the additions after.

In: the nodes of a graph. Out: the same with those of `export.fused_linear`. What is taken in is what products alone
read: a result that something else reads too stays a value, with the node that makes it. Knows nothing about
architectures; what matches no form stays as it is.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from onnx import NodeProto, helper

from export.fused_linear import FORMS, PRODUCTS, Form, Product
from export.gated_silu import OP_TYPE as GATED_SILU
from export.nodes import Nodes
from export.paged_attention import DOMAIN

__all__ = ["fuse_products"]


def fuse_products(nodes: Nodes, vectors: Collection[str], outputs: Collection[str]) -> None:
    """Fuses in place; drops what is no longer read.

    vectors: names of the weights of one axis, which are biases where they are added to a product. outputs: of the
    graph. A product that gives one of these stays as it is: it has few rows, so fusing it would save little.
    """
    for node in list(nodes.protos):
        kind = _product_of(node)
        if kind is not None:
            _fuse(nodes, node, kind, vectors, outputs)
    nodes.drop_unread(outputs)


def _product_of(node: NodeProto) -> Product | None:
    return next((kind for kind in PRODUCTS if (node.domain, node.op_type) == (DOMAIN, kind.op_type)), None)


def _fuse(nodes: Nodes, product: NodeProto, kind: Product, vectors: Collection[str], outputs: Collection[str]) -> None:
    """Puts a fused node into the place of the last of those that it takes in, where all its inputs are there."""
    taken = [product]
    num_inputs = len(kind.inputs)
    added = dict(zip(("bias",), product.input[num_inputs:], strict=False))
    for name in ("residual",) if kind.takes_bias else ("bias", "residual"):
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
    form = replace(form, product=kind, bias="bias" in added, residual="residual" in added)
    if form not in FORMS:
        return
    inputs = [x, *product.input[1:num_inputs], *gain, *added.values()]
    output = taken[-1].output[0]
    attributes |= _attributes(product)
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
    if maker is not None and all(_product_of(reader) for reader in _readers(nodes, x)):
        if maker.op_type == "RMSNormalization":
            return maker.input[0], [maker.input[1]], _attributes(maker), Form(norm=True)
        if maker.domain == DOMAIN and maker.op_type == GATED_SILU:
            return maker.input[0], [], {}, Form(silu=True)
    return x, [], {}, Form()


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _readers(nodes: Nodes, value: str) -> list[NodeProto]:
    return [node for node in nodes.protos if value in node.input]
