"""Which feed-forward layers become a GatedSilu node, and that nothing without a reader stays in the graph."""

from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest

from export import export_model
from export.nodes import Nodes
from nanovllm.testing import tiny_config, write_checkpoint

NUM_LAYERS = 2


def exported_model(tmp_path: Path, config: dict[str, Any], **options: Any) -> onnx.ModelProto:
    checkpoint = write_checkpoint(tmp_path / "some-model", config)
    folder = export_model(checkpoint, tmp_path / "out", progress=False, **options).folder
    return onnx.load(folder / "model.onnx", load_external_data=False)


def counts(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def functions(model: onnx.ModelProto) -> set[str]:
    return {function.name for function in model.functions}


def test_gate_and_up_of_one_product_are_one_node_a_layer_and_no_split(tmp_path: Path) -> None:
    model = exported_model(tmp_path, tiny_config(), precision="fp32")
    found = counts(model)
    assert found["GatedSilu_v1"] == NUM_LAYERS
    assert found["Split"] == NUM_LAYERS  # of query, key and value
    assert found["Sigmoid"] == 0
    assert "GatedSilu_v1" in functions(model)


@pytest.mark.parametrize("precision", ["int8", "int8w", "int4"])
def test_a_quantized_product_takes_the_node_in_and_its_body_calls_the_function(tmp_path: Path, precision: str) -> None:
    model = exported_model(tmp_path, tiny_config(), precision=precision)
    assert (counts(model)["GatedSilu_v1"], counts(model)["Split"]) == (0, NUM_LAYERS)
    assert "GatedSilu_v1" in functions(model)


def test_gate_and_up_of_two_products_stay_on_stock_nodes(tmp_path: Path) -> None:
    model = exported_model(tmp_path, tiny_config(), precision="int8", keep=["up_proj=fp32"])
    found = counts(model)
    assert (found["GatedSilu_v1"], found["Sigmoid"]) == (0, NUM_LAYERS)
    assert "GatedSilu_v1" not in functions(model)


def test_another_activation_stays_on_stock_nodes(tmp_path: Path) -> None:
    model = exported_model(tmp_path, tiny_config(hidden_act="gelu"))
    found = counts(model)
    assert (found["GatedSilu_v1"], found["Gelu"], found["Split"]) == (0, NUM_LAYERS, 2 * NUM_LAYERS)
    assert "GatedSilu_v1" not in functions(model)


def test_every_node_has_a_result_that_is_read_or_is_an_output(tmp_path: Path) -> None:
    graph = exported_model(tmp_path, tiny_config(), precision="int8").graph
    read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    assert [node.name for node in graph.node if not read.intersection(node.output)] == []


def test_what_only_a_dropped_node_reads_is_dropped_too() -> None:
    nodes = Nodes()
    wanted = nodes.add("Neg", ["x"])
    nodes.add_many("Split", [wanted, nodes.ints(1, 1)], ["a", "b"])
    nodes.add("Neg", ["a"])
    nodes.drop_unread({wanted})
    assert [node.op_type for node in nodes.protos] == ["Neg"]
