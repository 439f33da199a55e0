"""QuantizedLinear_v1 and PanelLinear_v1 are what their docstrings say, bit for bit; MatMulNBits reads what we pack."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from export.block_linear import block_linear_function
from export.nodes import Nodes
from export.paged_attention import DOMAIN, DOMAIN_VERSION, OPSET
from export.panel_linear import OP_TYPE as PANEL_LINEAR
from export.panel_linear import fits_panels, panel_linear_function
from export.quantize import dequantize_blocks, quantize_blocks, quantize_rows
from export.quantized_linear import OP_TYPE as QUANTIZED_LINEAR
from export.quantized_linear import quantized_linear_function
from export.weight_formats import Matrix, weight_format
from export.weight_plan import WeightPlan

Float32Array = npt.NDArray[np.float32]
Run = Callable[[Float32Array], Float32Array]


def linear(
    precision: str, weight: Float32Array, bias: Float32Array | None = None, *, is_table: bool = False, cut: int = 0
) -> Run:
    """A session over one linear layer of that precision. cut: how many rows come first, by themselves."""
    nodes, plan = Nodes(), WeightPlan("unused")
    parts = [part for part in (weight[:cut], weight[cut:]) if len(part)]
    matrix = Matrix("w", (weight.shape[0], weight.shape[1]), lambda _: iter(parts), is_table)
    name = weight_format(precision).linear(nodes, plan, "x", matrix, None if bias is None else "bias")
    if precision == "int8":
        in_panels = fits_panels(*matrix.shape) and not is_table
        assert nodes.protos[0].op_type == (PANEL_LINEAR if in_panels else QUANTIZED_LINEAR)
    return session(nodes, plan, name, "x", weight.shape[1], bias)


def session(
    nodes: Nodes, plan: WeightPlan, output: str, input_name: str, width: int, bias: Float32Array | None = None
) -> Any:
    stored = [(t.name, np.concatenate(list(t.slices())).astype(t.dtype)) for t in plan.tensors.values()]
    if bias is not None:
        stored.append(("bias", bias))
    initializers = [
        TensorProto(
            name=name,
            dims=array.shape,
            data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
            raw_data=array.tobytes(),
        )
        for name, array in stored
    ]
    is_ids = input_name == "ids"
    graph = helper.make_graph(
        nodes.protos,
        "one_layer",
        [
            helper.make_tensor_value_info(
                input_name, TensorProto.INT64 if is_ids else TensorProto.FLOAT, ["rows"] if is_ids else ["rows", width]
            )
        ],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["rows", "features"])],
        initializers,
    )
    model = helper.make_model(
        graph,
        ir_version=11,
        opset_imports=[
            helper.make_opsetid("", OPSET),
            helper.make_opsetid(DOMAIN, DOMAIN_VERSION),
            helper.make_opsetid("com.microsoft", 1),
        ],
        functions=[
            *(quantized_linear_function(DOMAIN), panel_linear_function(DOMAIN)),
            block_linear_function(DOMAIN),
        ],
    )
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 4
    opened = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda x: opened.run(None, {input_name: x})[0]


def contract(x: Float32Array, integers: npt.NDArray[np.int8], scales: Float32Array) -> Float32Array:
    """The arithmetic of the docstring, in numpy."""
    largest = np.maximum(np.abs(x).max(1, keepdims=True), np.float32(1e-30))
    scale = largest * np.float32(1 / 127)
    q = np.rint(x / scale).astype(np.int64)
    assert np.abs(q).max() <= 127
    sums = q @ integers.T.astype(np.int64)
    result: Float32Array = (sums.astype(np.float32) * scales) * scale
    return result


@given(
    rows=st.integers(1, 9),
    features=st.sampled_from([1, 3, 4, 48, 127, 128, 200]),
    out=st.sampled_from([1, 5, 16, 48, 130]),
    is_table=st.booleans(),
    cut=st.integers(0, 140),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40)
def test_the_body_is_the_contract_bit_for_bit(
    rows: int, features: int, out: int, is_table: bool, cut: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    weight = random.standard_normal((out, features)).astype(np.float32)
    x = (random.standard_normal((rows, features)) * 10.0 ** random.integers(-25, 20, (rows, 1))).astype(np.float32)
    x[random.random(rows) < 0.2] = 0
    run = linear("int8", weight, is_table=is_table, cut=cut)
    np.testing.assert_array_equal(run(x), contract(x, *quantize_rows(weight)))


def test_sums_at_the_ends_of_the_range_do_not_saturate() -> None:
    weight = np.ones((8, 4096), np.float32)
    x = np.ones((3, 4096), np.float32)
    x[1] = -1
    x[2, ::2] = -1
    np.testing.assert_array_equal(linear("int8", weight)(x), contract(x, *quantize_rows(weight)))
    np.testing.assert_allclose(linear("int8", weight)(x)[:, 0], [4096, -4096, 0], rtol=1e-6)


def test_a_row_of_zeros_gives_zeros() -> None:
    weight = np.random.default_rng(0).standard_normal((7, 64)).astype(np.float32)
    x = np.zeros((2, 64), np.float32)
    x[0, 3] = 1e9
    assert not linear("int8", weight)(x)[1].any()


@pytest.mark.parametrize("num_rows", [2, 3, 16, 48, 130])
def test_a_rows_result_does_not_depend_on_the_rows_beside_it(num_rows: int) -> None:
    random = np.random.default_rng(num_rows)
    run = linear("int8", random.standard_normal((96, 200)).astype(np.float32))
    x = (random.standard_normal((num_rows, 200)) * 10.0 ** random.integers(-3, 4, (num_rows, 1))).astype(np.float32)
    together = run(x)
    for i in range(num_rows):
        np.testing.assert_array_equal(run(x[i : i + 1])[0], together[i])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("features", [16, 128, 200, 384])
@pytest.mark.parametrize("with_bias", [False, True])
def test_blocks_are_read_as_they_are_packed(bits: int, features: int, with_bias: bool) -> None:
    random = np.random.default_rng(features)
    weight = random.standard_normal((24, features)).astype(np.float32)
    bias = random.standard_normal(24).astype(np.float32) if with_bias else None
    x = random.standard_normal((5, features)).astype(np.float32)
    stored = dequantize_blocks(*quantize_blocks(weight, bits), features)
    expected = x @ stored.T + (0 if bias is None else bias)
    actual = linear({4: "int4", 8: "int8w"}[bits], weight, bias)(x)
    assert np.abs(actual - expected).max() < 0.02 * np.abs(expected).max(), "more than rounding the input explains"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "int8w", "int4"])
@pytest.mark.parametrize("features", [48, 128, 200])
def test_an_embedding_gives_the_stored_rows(precision: str, features: int) -> None:
    import ml_dtypes

    table = np.random.default_rng(features).standard_normal((30, features)).astype(np.float32)
    nodes, plan = Nodes(), WeightPlan("unused")
    matrix = Matrix("w", (30, features), lambda _: iter([table[:11], table[11:]]))
    name = weight_format(precision).embedding(nodes, plan, matrix, "ids")
    integers, scales = quantize_rows(table)
    stored = {
        "fp32": lambda: table,
        "fp16": lambda: table.astype(np.float16).astype(np.float32),
        "bf16": lambda: table.astype(ml_dtypes.bfloat16).astype(np.float32),
        "int8": lambda: integers * scales[:, None],
        "int8w": lambda: dequantize_blocks(*quantize_blocks(table, 8), features),
        "int4": lambda: dequantize_blocks(*quantize_blocks(table, 4), features),
    }[precision]()
    ids = np.array([29, 0, 11, 11, 10])
    np.testing.assert_array_equal(session(nodes, plan, name, "ids", features)(ids), stored[ids])
