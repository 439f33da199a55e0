"""A growing list of ONNX nodes, of a graph or of a function's body. Names the results; checks nothing."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from onnx import AttributeProto, NodeProto, helper

__all__ = ["Nodes", "Ref"]


@dataclass(frozen=True, slots=True)
class Ref:
    """An attribute's value: that of attribute `name` of the function around the node; is_float: FLOAT, else INT."""

    name: str
    is_float: bool = False


class Nodes:
    """Nodes in the order in which they run."""

    def __init__(self) -> None:
        self.protos: list[NodeProto] = []

    def add(self, op_type: str, inputs: Sequence[str], output: str | None = None, **attributes: Any) -> str:
        """Adds a node with one output, named `output` or by the operator; returns that name.

        An attribute given as `Ref` takes its value from the function that the node stands in.
        """
        output = output or f"{op_type.lower()}.{len(self.protos)}"
        self.add_many(op_type, inputs, [output], **attributes)
        return output

    def add_many(
        self, op_type: str, inputs: Sequence[str], outputs: Sequence[str], domain: str | None = None, **attributes: Any
    ) -> None:
        """Adds a node with the given outputs."""
        refs = {key: value for key, value in attributes.items() if isinstance(value, Ref)}
        plain = {key: value for key, value in attributes.items() if key not in refs}
        node = helper.make_node(op_type, inputs, outputs, name=outputs[0], domain=domain, **plain)
        for key, ref in refs.items():
            kind = AttributeProto.FLOAT if ref.is_float else AttributeProto.INT
            node.attribute.append(helper.make_attribute_ref(key, kind, ref_attr_name=ref.name))
        self.protos.append(node)

    def again(self, node: NodeProto, names: dict[str, str]) -> None:
        """Adds a copy of `node` that reads what `names` says in place of its inputs, and notes in it the copy's
        results."""
        copy = NodeProto()
        copy.CopyFrom(node)
        names.update({output: f"{output}.again.{len(self.protos)}" for output in node.output if output})
        for values in (copy.input, copy.output):
            values[:] = [names.get(name, name) for name in values]
        copy.name = copy.output[0]
        self.protos.append(copy)

    def ints(self, *values: int) -> str:
        """A 1-D int64 constant."""
        return self.add("Constant", [], value_ints=list(values))

    def scalar(self, value: int) -> str:
        """A 0-D int64 constant."""
        return self.add("Constant", [], value_int=value)

    def number(self, value: float) -> str:
        """A 0-D float32 constant."""
        return self.add("Constant", [], value_float=value)

    def rename(self, old: str, new: str) -> None:
        """Renames a result that no node reads."""
        for node in self.protos:
            assert old not in node.input, f"{old} is read by {node.name}"
            outputs = [new if output == old else output for output in node.output]
            del node.output[:]
            node.output.extend(outputs)

    def drop_unread(self, wanted: Collection[str]) -> None:
        """Drops every node none of whose results is wanted or read, directly or not, by a node that stays."""
        read = set(wanted)
        kept: list[NodeProto] = []
        for node in reversed(self.protos):
            if read.intersection(node.output):
                kept.append(node)
                read.update(node.input)
        self.protos = kept[::-1]
