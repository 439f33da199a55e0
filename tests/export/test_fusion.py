"""Which neighbours a quantized product takes in, and that this changes no bit of what the stock bodies give."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import NodeProto, TensorProto, helper, numpy_helper

from export import export_model
from export.block_linear import OP_TYPE as BLOCK_LINEAR
from export.block_linear import block_linear_function
from export.fused_linear import FORMS, PRODUCTS
from export.fusion import fuse_products
from export.gated_silu import OP_TYPE as GATED_SILU
from export.gated_silu import gated_silu_function
from export.nodes import Nodes
from export.paged_attention import DOMAIN, DOMAIN_VERSION, OPSET
from export.panel_linear import OP_TYPE as PANEL_LINEAR
from export.panel_linear import panel_linear_function, panel_shape
from export.quantize import BLOCK
from export.quantized_linear import MICROSOFT_DOMAIN
from nanovllm.testing import tiny_config, write_checkpoint

WIDTH = 16
VECTORS = ("gain", "scale", "bias")


class Recorder:
    """Nodes over "x" (T, WIDTH). Every product has weights of its own: ONNX Runtime does not load a model in which two
    share them."""

    def __init__(self) -> None:
        self.nodes = Nodes()

    def product(self, x: str, weight: str = "weight", scale: str = "scale") -> str:
        return self.nodes.add(PANEL_LINEAR, [x, f"{weight}.{len(self.nodes.protos)}", scale], domain=DOMAIN)

    def blocks(self, x: str, *bias: str) -> str:
        inputs = [x, f"blocks.{len(self.nodes.protos)}", "block_scale", *bias]
        return self.nodes.add(BLOCK_LINEAR, inputs, domain=DOMAIN, N=WIDTH, K=WIDTH, bits=4)

    def biased(self, x: str) -> str:
        return self.blocks(x, "bias")

    def norm(self, x: str) -> str:
        return self.nodes.add("RMSNormalization", [x, "gain"], epsilon=1e-5)

    def silu(self, x: str) -> str:
        return self.nodes.add(GATED_SILU, [self.product(x, "wide", "wide_scale")], domain=DOMAIN)

    def add(self, a: str, b: str) -> str:
        return self.nodes.add("Add", [a, b])

    def fused(self, *outputs: str) -> list[str]:
        """Operators, sorted, after the pass."""
        fuse_products(self.nodes, VECTORS, outputs)
        return sorted(node.op_type for node in self.nodes.protos)


def run(nodes: list[NodeProto], output: str, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(7)
    stored: dict[str, npt.NDArray[Any]] = {}
    for name in sorted({name for node in nodes for name in node.input}):
        num_out = 2 * WIDTH if name.startswith("wide") else WIDTH
        if name.startswith(("weight.", "wide.")):
            stored[name] = rng.integers(-127, 128, panel_shape(num_out, WIDTH), np.int8)
        elif name.startswith("blocks."):
            stored[name] = rng.integers(0, 256, (num_out, 1, BLOCK // 2), np.uint8)
        elif name == "block_scale":
            stored[name] = rng.uniform(0.005, 0.02, (num_out, 1)).astype(np.float32)
        elif name in (*VECTORS, "wide_scale"):
            stored[name] = rng.uniform(0.005, 0.02, num_out).astype(np.float32)
    shape = [None, WIDTH]
    graph = helper.make_graph(
        nodes,
        "some_graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    forms = [form.function(DOMAIN) for form in FORMS]
    model = helper.make_model(
        graph,
        ir_version=11,
        opset_imports=[
            helper.make_opsetid(domain, version)
            for domain, version in {"": OPSET, DOMAIN: DOMAIN_VERSION, MICROSOFT_DOMAIN: 1}.items()
        ],
        functions=[
            *(panel_linear_function(DOMAIN), block_linear_function(DOMAIN), gated_silu_function(DOMAIN)),
            *forms,
        ],
    )
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run([output], {"x": x})[0])


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Recorder, str]:
    """Layers on layers, each on any values before it; all that nobody reads is summed up to the output."""
    recorder = Recorder()
    values = ["x", recorder.product("x")]
    for _ in range(draw(st.integers(1, 10))):
        a, b = draw(st.sampled_from(values[-3:])), draw(st.sampled_from([*values, "bias"]))
        layer = draw(st.sampled_from(["product", "blocks", "biased", "norm", "silu", "add", "add"]))
        values.append(recorder.add(a, b) if layer == "add" else getattr(recorder, layer)(a))
    read = {name for node in recorder.nodes.protos for name in node.input}
    unread = [value for value in values if value not in read]
    total = unread[0]
    for value in unread[1:]:
        total = recorder.add(total, value)
    return recorder, total


@settings(max_examples=60, deadline=None)
@given(graph=graphs(), seed=st.integers(0, 1000))
def test_the_stock_bodies_of_a_fused_graph_give_the_same_values(graph: tuple[Recorder, str], seed: int) -> None:
    recorder, output = graph
    x = np.random.default_rng(seed).standard_normal((3, WIDTH)).astype(np.float32)
    expected = run(recorder.nodes.protos, output, x)
    num_additions = sum(node.op_type == "Add" for node in recorder.nodes.protos)
    fuse_products(recorder.nodes, VECTORS, {output})
    forms = {form.op_type: form for form in FORMS}
    fused = [forms[node.op_type] for node in recorder.nodes.protos if node.op_type in forms]
    taken = sum((form.bias and not form.product.takes_bias) + form.residual for form in fused)
    assert sum(node.op_type == "Add" for node in recorder.nodes.protos) == num_additions - taken
    np.testing.assert_array_equal(run(recorder.nodes.protos, output, x), expected)


def test_a_norm_that_something_else_reads_stays_a_node() -> None:
    r = Recorder()
    normed = r.norm("x")
    assert r.fused(r.add(r.norm(r.product(normed)), normed)) == [
        "Add",
        "PanelLinear_v1",
        "RMSNormalization",
        "RMSNormalization",
    ]


def test_products_that_share_a_norm_take_it_in_each() -> None:
    r = Recorder()
    normed = r.norm("x")
    a, b = r.product(normed), r.product(normed)
    total = r.norm(r.add(r.norm(a), r.norm(b)))
    assert r.fused(total) == ["Add", *["NormPanelLinear_v1"] * 2, *["RMSNormalization"] * 3]


def test_a_sum_of_two_products_goes_into_one_of_them() -> None:
    r = Recorder()
    total = r.norm(r.add(r.product("x"), r.product(r.norm("x"))))
    assert r.fused(total) == ["NormPanelLinear_v1", "PanelLinearResidual_v1", "RMSNormalization"]


def test_what_is_added_before_the_bias_does_not_go_with_it() -> None:
    r = Recorder()
    total = r.norm(r.add(r.add(r.product("x"), "x"), "bias"))
    assert r.fused(total) == ["Add", "PanelLinearResidual_v1", "RMSNormalization"]


def test_a_block_product_keeps_its_own_bias_before_what_is_added() -> None:
    r = Recorder()
    total = r.norm(r.add(r.biased(r.norm("x")), "x"))
    assert r.fused(total) == ["NormBlockLinearBiasResidual_v1", "RMSNormalization"]


def test_a_block_product_with_nothing_but_its_bias_stays_as_it_is() -> None:
    r = Recorder()
    assert r.fused(r.norm(r.biased("x"))) == [BLOCK_LINEAR, "RMSNormalization"]


def test_a_vector_added_to_a_block_product_stays_a_node() -> None:
    r = Recorder()
    assert r.fused(r.norm(r.add(r.blocks("x"), "bias"))) == ["Add", BLOCK_LINEAR, "RMSNormalization"]


def test_a_product_added_to_itself_or_read_twice_stays_as_it_is() -> None:
    r = Recorder()
    a = r.product("x")
    b = r.product(r.add(a, a))
    found = r.fused(r.norm(r.add(r.norm(b), b)))
    assert found == [*["Add"] * 2, *["PanelLinear_v1"] * 2, *["RMSNormalization"] * 2]


def test_a_product_that_gives_an_output_stays_as_it_is() -> None:
    r = Recorder()
    assert r.fused(r.product(r.norm("x"))) == ["PanelLinear_v1", "RMSNormalization"]


def exported(tmp_path: Path, config: dict[str, Any], **options: Any) -> Counter[str]:
    folder = export_model(
        write_checkpoint(tmp_path / "some-model", config), tmp_path / "out", progress=False, **options
    ).folder
    onnx.checker.check_model(str(folder / "model.onnx"))
    return Counter(node.op_type for node in onnx.load(folder / "model.onnx", load_external_data=False).graph.node)


@pytest.mark.parametrize(
    ("precision", "product"), [("int8", "PanelLinear"), ("int8w", "BlockLinear"), ("int4", "BlockLinear")]
)
def test_a_layer_of_qwen2_is_five_nodes(tmp_path: Path, precision: str, product: str) -> None:
    found = exported(tmp_path, tiny_config(), precision=precision)
    for op_type in (
        f"Norm{product}Bias_v1",  # of query, key and value
        f"{product}Residual_v1",  # of attention's output
        f"Norm{product}_v1",  # of gate and up
        f"Silu{product}Residual_v1",  # down
        "PagedAttention_v1",
    ):
        assert found[op_type] == 2, op_type
    assert (found["Add"], found["GatedSilu_v1"]) == (0, 0)
    assert found["RMSNormalization"] == 1 + found["GreedyHead_v1"]  # the last norm, of each head
    assert sum(found[kind] for kind in ("QuantizedLinear_v1", *(kind.op_type for kind in PRODUCTS))) == 1  # of logits


def test_float32_is_not_fused(tmp_path: Path) -> None:
    found = exported(tmp_path, tiny_config(), precision="fp32")
    assert not {form.op_type for form in FORMS}.intersection(found)
    assert found["RMSNormalization"] == 5


def test_a_layer_kept_in_float32_is_left_out(tmp_path: Path) -> None:
    found = exported(tmp_path, tiny_config(), precision="int8", keep=["down_proj=fp32"])
    assert (found["GatedSilu_v1"], found["Add"], found["NormPanelLinear_v1"]) == (2, 2, 2)
