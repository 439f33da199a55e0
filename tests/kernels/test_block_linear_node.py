"""BlockLinear_v1 in ONNX Runtime: kernel against stock body, with and without a bias."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from export.block_linear import INPUTS, OP_TYPE, OUTPUTS, block_linear_function
from export.paged_attention import DOMAIN, DOMAIN_VERSION
from export.quantize import BLOCK, dequantize_blocks, quantize_blocks

Float32Array = npt.NDArray[np.float32]
Uint8Array = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Layer:
    """One node. Its weights are part of the model, as in an export: only then is MatMulNBits' arithmetic int8."""

    weight: Uint8Array
    scale: Float32Array
    bias: Float32Array | None
    num_in: int

    def session(self, library: Path | None, num_threads: int = 2) -> onnxruntime.InferenceSession:
        """library: whose kernel runs; None: the stock body."""
        num_out, _, num_bytes = self.weight.shape
        arrays = [self.weight, self.scale, *([] if self.bias is None else [self.bias])]
        weights = [numpy_helper.from_array(array, name) for array, name in zip(arrays, INPUTS[1:], strict=False)]
        names = [INPUTS[0], *(weight.name for weight in weights)]
        attributes = {"N": num_out, "K": self.num_in, "bits": num_bytes * 8 // BLOCK}
        node = helper.make_node(OP_TYPE, names, OUTPUTS, domain=DOMAIN, **attributes)
        x = helper.make_tensor_value_info(INPUTS[0], TensorProto.FLOAT, [None, self.num_in])
        output = helper.make_tensor_value_info(OUTPUTS[0], TensorProto.FLOAT, [None, num_out])
        function = block_linear_function(DOMAIN)
        imports = [*function.opset_import, helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
        graph = helper.make_graph([node], "one_node", [x], [output], weights)
        model = helper.make_model(graph, ir_version=11, opset_imports=imports, functions=[function])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        if library is not None:
            options.register_custom_ops_library(str(library))
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(self, library: Path | None, x: Float32Array, num_threads: int = 2) -> Float32Array:
        (output,) = self.session(library, num_threads).run(None, {INPUTS[0]: x})
        return np.asarray(output)


def random_layer(seed: int, num_in: int, num_out: int, bits: int, *, has_bias: bool = False) -> Layer:
    values = np.random.default_rng(seed).standard_normal((num_out, num_in)).astype(np.float32)
    bias = np.linspace(-1, 1, num_out, dtype=np.float32) if has_bias else None
    return Layer(*quantize_blocks(values, bits), bias, num_in)


def random_rows(seed: int, num_rows: int, num_in: int) -> Float32Array:
    return np.random.default_rng(~seed & 0xFFFF).standard_normal((num_rows, num_in)).astype(np.float32)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32 - 1),
    bits=st.sampled_from([4, 8]),
    num_rows=st.integers(1, 30),
    num_in=st.sampled_from([7, 64, 128, 200, 896]),
    num_out=st.sampled_from([1, 5, 64, 150]),
    has_bias=st.booleans(),
)
def test_kernel_and_body_differ_by_a_few_units_of_the_quantized_inputs(
    kernel_library: Path,
    instruction_set: str,
    seed: int,
    bits: int,
    num_rows: int,
    num_in: int,
    num_out: int,
    has_bias: bool,
) -> None:
    layer, x = random_layer(seed, num_in, num_out, bits, has_bias=has_bias), random_rows(seed, num_rows, num_in)
    found, stock = layer.run(kernel_library, x), layer.run(None, x)
    # An input that is rounded to the other side moves a result by its unit, at most the largest, times a weight.
    values = dequantize_blocks(layer.weight, layer.scale, num_in)
    unit = np.abs(x).max(1, keepdims=True) / 127 * np.abs(values).max(1)
    assert (np.abs(found - stock) <= 3 * unit).all()
    assert np.median(np.abs(found - stock) / unit) <= 0.01  # which few inputs are
    exact = x.astype(np.float64) @ values.astype(np.float64).T + (0 if layer.bias is None else layer.bias)
    assert (np.abs(found - exact) <= 2 * unit * num_in**0.5).all()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("num_rows", [1, 9, 40])
def test_the_threads_of_the_session_change_nothing(
    kernel_library: Path, instruction_set: str, bits: int, num_rows: int
) -> None:
    layer, x = random_layer(7, 896, 700, bits), random_rows(7, num_rows, 896)
    np.testing.assert_array_equal(layer.run(kernel_library, x, num_threads=3), layer.run(kernel_library, x, 1))
