"""The quantized product joined with its neighbours: the contract bit for bit, near its stock body, each row its own."""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from export.fused_linear import FORMS, Form
from export.gated_silu import OP_TYPE as GATED_SILU
from export.gated_silu import gated_silu_function
from export.paged_attention import DOMAIN, DOMAIN_VERSION, OPSET
from export.quantized_linear import quantized_linear_function

Float32Array = npt.NDArray[np.float32]
EPSILON = 1e-6
form_ids = [form.op_type for form in FORMS]


@cache
def session(library: Path | None, op_type: str, num_threads: int) -> onnxruntime.InferenceSession:
    """A model of one node; library: whose kernel runs, None: the stock body."""
    form = next((form for form in FORMS if form.op_type == op_type), None)
    names = ("x",) if form is None else form.inputs
    axes = {"weight_scale": 1, "gain": 1, "bias": 1}
    values = [
        helper.make_tensor_value_info(
            name, TensorProto.INT8 if name == "weight" else TensorProto.FLOAT, [None] * axes.get(name, 2)
        )
        for name in names
    ]
    attributes = {"epsilon": EPSILON} if form is not None and form.norm else {}
    node = helper.make_node(op_type, names, ["output"], domain=DOMAIN, **attributes)
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, [None, None])
    functions = [quantized_linear_function(DOMAIN), gated_silu_function(DOMAIN)]
    model = helper.make_model(
        helper.make_graph([node], "one_node", values, [output]),
        ir_version=11,
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)],
        functions=functions if form is None else [*functions, form.function(DOMAIN)],
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.add_session_config_entry("session.x64quantprecision", "1")
    if library is not None:
        options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True)
class Layer:
    """One node and its inputs; those that the form does not have are there all the same."""

    form: Form
    x: Float32Array
    weight: npt.NDArray[np.int8]
    weight_scale: Float32Array
    gain: Float32Array
    bias: Float32Array
    residual: Float32Array

    def run(self, library: Path | None, num_threads: int = 2) -> Float32Array:
        inputs = {name: getattr(self, name) for name in self.form.inputs}
        return np.asarray(session(library, self.form.op_type, num_threads).run(None, inputs)[0])

    def rows(self, library: Path) -> Float32Array:
        """What is quantized, line by line as the contract says; SiLU by the kernel of its own."""
        if self.form.silu:
            return np.asarray(session(library, GATED_SILU, 1).run(None, {"x": self.x})[0])
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
        rows = self.rows(library)
        scale = np.maximum(np.abs(rows).max(1, initial=0, keepdims=True), np.float32(1e-30)) * np.float32(1 / 127)
        sums = np.rint(rows / scale).astype(np.int64) @ self.weight.astype(np.int64).T
        output = sums.astype(np.float32) * self.weight_scale * scale
        if self.form.bias:
            output = output + self.bias
        return output + self.residual if self.form.residual else output


def random_layer(form: Form, seed: int, num_rows: int, num_in: int, num_out: int) -> Layer:
    """Rows of different sizes, zeros among them."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((num_rows, num_in * (2 if form.silu else 1))).astype(np.float32)
    x *= (10.0 ** rng.uniform(-3, 1, (num_rows, 1))).astype(np.float32)
    x[rng.random(num_rows) < 0.1] = 0
    gain, bias = (rng.standard_normal(size).astype(np.float32) for size in (num_in, num_out))
    residual = rng.standard_normal((num_rows, num_out)).astype(np.float32)
    weight = rng.integers(-127, 128, (num_out, num_in), np.int8)
    return Layer(form, x, weight, rng.uniform(0, 0.1, num_out).astype(np.float32), gain, bias, residual)


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
    found, stock = layer.run(kernel_library), layer.run(None)
    if not (form.norm or form.silu):
        np.testing.assert_array_equal(found, stock)
        return
    rows = layer.rows(kernel_library).astype(np.float64)
    scale = np.maximum(np.abs(rows).max(1, initial=0, keepdims=True), 1e-30) / 127
    near_half = np.abs(np.abs(rows / scale % 1) - 0.5) < 1e-3
    weight = np.abs(layer.weight.astype(np.float64)).T * layer.weight_scale
    allowed = near_half @ weight * scale + 1e-5 * (np.abs(rows) @ weight) + 1e-5
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


@pytest.mark.parametrize("magnitude", [1e-30, 1e-20, 1e20])
def test_a_norm_of_very_small_and_very_large_numbers_is_exact(
    kernel_library: Path, instruction_set: str, magnitude: float
) -> None:
    layer = random_layer(Form(norm=True), 5, 20, 100, 30)
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
