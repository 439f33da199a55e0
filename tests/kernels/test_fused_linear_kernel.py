"""The quantized products joined with neighbours: the contract bit for bit, near the stock body, each row its own."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from export.block_linear import block_linear_function
from export.fused_linear import FORMS, PRODUCTS, Form, Product
from export.gated_silu import OP_TYPE as GATED_SILU
from export.gated_silu import gated_silu_function
from export.paged_attention import DOMAIN, DOMAIN_VERSION, OPSET
from export.panel_linear import PANEL, STEP, in_panels, panel_linear_function
from export.quantize import BLOCK, dequantize_blocks, num_blocks
from export.quantized_linear import MICROSOFT_DOMAIN

Float32Array = npt.NDArray[np.float32]
EPSILON = 1e-6
form_ids = [form.op_type for form in FORMS]


@dataclass(frozen=True)
class Node:
    """attributes: N, K and bits of a block product, none otherwise. A node without a form: a kernel of one input."""

    op_type: str
    form: Form | None = None
    attributes: tuple[tuple[str, int], ...] = ()

    def session(
        self, library: Path | None, num_threads: int, stored: Mapping[str, npt.NDArray[Any]]
    ) -> onnxruntime.InferenceSession:
        """A model of this node. library: whose kernel runs, None: the body. stored: inputs that are part of it."""
        names = ("x",) if self.form is None else self.form.inputs
        weights = [numpy_helper.from_array(array, name) for name, array in stored.items()]
        attributes = {**dict(self.attributes), **({"epsilon": EPSILON} if self.form and self.form.norm else {})}
        graph = helper.make_graph(
            [helper.make_node(self.op_type, names, ["output"], domain=DOMAIN, **attributes)],
            "one_node",
            [self._value(name) for name in names if name not in stored],
            [helper.make_tensor_value_info("output", TensorProto.FLOAT, [None, None])],
            weights,
        )
        functions = [panel_linear_function(DOMAIN), block_linear_function(DOMAIN), gated_silu_function(DOMAIN)]
        if self.form in FORMS:
            functions.append(self.form.function(DOMAIN))
        versions = {"": OPSET, DOMAIN: DOMAIN_VERSION, MICROSOFT_DOMAIN: 1}
        imports = [helper.make_opsetid(domain, version) for domain, version in versions.items()]
        model = helper.make_model(graph, ir_version=11, opset_imports=imports, functions=functions)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.add_session_config_entry("session.x64quantprecision", "1")
        if library is not None:
            options.register_custom_ops_library(str(library))
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def _value(self, name: str) -> Any:
        """Declares an input; its sizes are left open."""
        element, axes = TensorProto.FLOAT, {"gain": 1, "bias": 1, "weight_scale": 2 if self.attributes else 1}
        if name == "weight":
            element = TensorProto.UINT8 if self.attributes else TensorProto.INT8
            axes = {"weight": 3 if self.attributes else 4}
        return helper.make_tensor_value_info(name, element, [None] * axes.get(name, 2))


@cache
def kernel_session(library: Path, node: Node, num_threads: int) -> onnxruntime.InferenceSession:
    return node.session(library, num_threads, {})


@dataclass(frozen=True)
class Layer:
    """One node and its inputs; those that the form does not have are there all the same. weight: in blocks or rows."""

    form: Form
    x: Float32Array
    weight: npt.NDArray[Any]
    weight_scale: Float32Array
    gain: Float32Array
    bias: Float32Array
    residual: Float32Array

    def node(self, form: Form) -> Node:
        if not form.product.attributes:
            return Node(form.op_type, form)
        bits = self.weight.shape[2] * 8 // BLOCK
        return Node(form.op_type, form, (("N", len(self.weight)), ("K", len(self.gain)), ("bits", bits)))

    def inputs(self, names: tuple[str, ...]) -> dict[str, npt.NDArray[Any]]:
        found = {name: getattr(self, name) for name in names}
        if "weight" in found and not self.form.product.attributes:
            (found["weight"],) = in_panels([self.weight])
        return found

    def run(self, library: Path, num_threads: int = 2) -> Float32Array:
        session = kernel_session(library, self.node(self.form), num_threads)
        return np.asarray(session.run(None, self.inputs(self.form.inputs))[0])

    def stock(self) -> Float32Array:
        """Of the body. Its weights are part of the model: only then is MatMulNBits' arithmetic int8."""
        given = tuple(name for name in self.form.inputs if name in ("x", "residual"))
        stored = tuple(name for name in self.form.inputs if name not in given)
        session = self.node(self.form).session(None, 1, self.inputs(stored))
        return np.asarray(session.run(None, self.inputs(given))[0])

    def rows(self, library: Path) -> Float32Array:
        """What is quantized, line by line as the contract says; SiLU by the kernel of its own."""
        if self.form.silu:
            return np.asarray(kernel_session(library, Node(GATED_SILU), 1).run(None, {"x": self.x})[0])
        if not self.form.norm:
            return self.x
        width = self.x.shape[1]
        squares = np.pad(self.x.astype(np.float64), ((0, 0), (0, -width % 16))) ** 2
        sums = np.zeros((len(self.x), 16))
        for first in range(0, squares.shape[1], 16):
            sums = sums + squares[:, first : first + 16]
        while sums.shape[1] > 1:
            half = sums.shape[1] // 2
            sums = sums[:, :half] + sums[:, half:]
        factor = (1 / np.sqrt(sums / width + np.float64(np.float32(EPSILON)))).astype(np.float32)
        return self.x * factor * self.gain

    def contract(self, library: Path) -> Float32Array:
        """The product by the kernel of its own, which has tests of its own."""
        product = Form(self.form.product)
        inputs = {**self.inputs(product.inputs), "x": self.rows(library)}
        output = np.asarray(kernel_session(library, self.node(product), 1).run(None, inputs)[0])
        if self.form.bias:
            output = output + self.bias
        return output + self.residual if self.form.residual else output

    def magnitudes(self) -> npt.NDArray[np.float64]:
        """Of the weights, (num_in, num_out)."""
        if self.form.product.attributes:
            values = dequantize_blocks(self.weight, self.weight_scale, len(self.gain))
        else:
            values = self.weight * self.weight_scale[:, None]
        return np.abs(values.astype(np.float64)).T

    def scales(self, rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """What a step of each quantized number is worth, (num_rows, num_in)."""
        size = BLOCK if self.form.product.attributes else rows.shape[1]
        firsts = np.arange(0, rows.shape[1], size)
        largest = np.maximum.reduceat(np.abs(rows), firsts, axis=1)
        return np.maximum(largest, 1e-30).repeat(size, 1)[:, : rows.shape[1]] / 127


def random_layer(form: Form, seed: int, num_rows: int, num_in: int, num_out: int) -> Layer:
    """Rows of different sizes, zeros among them; blocks of 8 bits where the seed is even, else of 4. What is kept in
    panels has the next larger sizes that fit."""
    if not form.product.attributes:
        num_in, num_out = num_in + -num_in % STEP, num_out + -num_out % PANEL
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((num_rows, num_in * (2 if form.silu else 1))).astype(np.float32)
    x *= (10.0 ** rng.uniform(-3, 1, (num_rows, 1))).astype(np.float32)
    x[rng.random(num_rows) < 0.1] = 0
    gain, bias = (rng.standard_normal(size).astype(np.float32) for size in (num_in, num_out))
    residual = rng.standard_normal((num_rows, num_out)).astype(np.float32)
    if form.product.attributes:
        blocks = (num_out, num_blocks(num_in))
        weight: npt.NDArray[Any] = rng.integers(0, 256, (*blocks, BLOCK // (1 + seed % 2)), np.uint8)
        scale = rng.uniform(0, 0.1, blocks)
    else:
        weight = rng.integers(-127, 128, (num_out, num_in), np.int8)
        scale = rng.uniform(0, 0.1, num_out)
    return Layer(form, x, weight, scale.astype(np.float32), gain, bias, residual)


sizes = st.one_of(st.integers(1, 150), st.sampled_from([256, 896]))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    form=st.sampled_from(FORMS),
    seed=st.integers(0, 2**32 - 1),
    num_rows=st.one_of(st.integers(0, 40), st.integers(180, 210)),
    num_in=sizes,
    num_out=sizes,
)
def test_it_gives_the_values_of_the_contract_bit_for_bit(
    kernel_library: Path, instruction_set: str, form: Form, seed: int, num_rows: int, num_in: int, num_out: int
) -> None:
    layer = random_layer(form, seed, num_rows, num_in, num_out)
    np.testing.assert_array_equal(layer.run(kernel_library), layer.contract(kernel_library))


@pytest.mark.parametrize("form", FORMS, ids=form_ids)
@pytest.mark.parametrize("num_rows", [0, 1, 5, 30])
def test_the_stock_body_differs_by_what_rounding_explains(
    kernel_library: Path, instruction_set: str, form: Form, num_rows: int
) -> None:
    layer = random_layer(form, num_rows, num_rows, 300, 70)
    found, stock = layer.run(kernel_library), layer.stock()
    if not (form.norm or form.silu or form.product.attributes):  # MatMulNBits adds up in orders of its own
        np.testing.assert_array_equal(found, stock)
        return
    rows = layer.rows(kernel_library).astype(np.float64)
    scale, weight = layer.scales(rows), layer.magnitudes()
    near_half = np.abs(np.abs(rows / scale % 1) - 0.5) < 1e-3
    allowed = (near_half * scale) @ weight + 1e-5 * (np.abs(rows) @ weight) + 1e-5
    assert (np.abs(found - stock) <= allowed).all()


@pytest.mark.parametrize("form", FORMS, ids=form_ids)
def test_a_row_alone_equals_the_row_in_a_batch(kernel_library: Path, instruction_set: str, form: Form) -> None:
    layer = random_layer(form, 3, 50, 130, 77)
    together = layer.run(kernel_library)
    for i in range(50):
        alone = replace(layer, x=layer.x[i : i + 1], residual=layer.residual[i : i + 1])
        np.testing.assert_array_equal(alone.run(kernel_library)[0], together[i])


@pytest.mark.parametrize("form", FORMS, ids=form_ids)
def test_the_number_of_threads_changes_nothing(kernel_library: Path, instruction_set: str, form: Form) -> None:
    for num_rows in (1, 33, 250):
        layer = random_layer(form, num_rows, num_rows, 300, 700)
        np.testing.assert_array_equal(layer.run(kernel_library, 1), layer.run(kernel_library, 2))


@pytest.mark.parametrize("product", PRODUCTS, ids=[product.op_type for product in PRODUCTS])
@pytest.mark.parametrize("magnitude", [1e-30, 1e-20, 1e20])
def test_a_norm_of_very_small_and_very_large_numbers_is_exact(
    kernel_library: Path, instruction_set: str, magnitude: float, product: Product
) -> None:
    layer = random_layer(Form(product, norm=True), 5, 20, 100, 30)
    layer = replace(layer, x=layer.x * np.float32(magnitude))
    found = layer.run(kernel_library)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found, layer.contract(kernel_library))


def test_rows_that_are_not_finite_leave_the_others_alone(kernel_library: Path, instruction_set: str) -> None:
    for form in FORMS:
        layer = random_layer(form, 4, 30, 100, 40)
        expected = layer.run(kernel_library)
        x = layer.x.copy()
        x[3, 7], x[4, 8], x[5] = np.nan, np.inf, -np.inf
        others = np.r_[0:3, 6:30]
        np.testing.assert_array_equal(replace(layer, x=x).run(kernel_library)[others], expected[others])
