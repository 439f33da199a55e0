"""GatedSilu_v1: the kernel and the stock body stay within the contract's bounds, and an element's result is its own."""

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from export.gated_silu import INPUTS, OP_TYPE, OUTPUTS, gated_silu_function
from export.paged_attention import DOMAIN, DOMAIN_VERSION, OPSET

Float32Array = npt.NDArray[np.float32]


@cache
def session(library: Path | None, num_threads: int = 2) -> onnxruntime.InferenceSession:
    """A model of one node; library: whose kernel runs, None: the stock body."""
    node = helper.make_node(OP_TYPE, INPUTS, OUTPUTS, domain=DOMAIN)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in (*INPUTS, *OUTPUTS)]
    graph = helper.make_graph([node], "one_node", values[:1], values[1:])
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    model = helper.make_model(graph, ir_version=11, opset_imports=imports, functions=[gated_silu_function(DOMAIN)])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    if library is not None:
        options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(library: Path | None, gate_up: Float32Array, num_threads: int = 2) -> Float32Array:
    (output,) = session(library, num_threads).run(None, {INPUTS[0]: gate_up})
    return np.asarray(output)


def random_rows(seed: int, num_rows: int, size: int, magnitude: float = 4.0) -> Float32Array:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((num_rows, 2 * size)) * magnitude).astype(np.float32)


def exact(gate_up: Float32Array) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The result in float64, and |gate * up|, by which the contract measures differences."""
    gate, up = np.split(gate_up.astype(np.float64), 2, axis=1)
    with np.errstate(over="ignore"):
        return gate / (1 + np.exp(-gate)) * up, np.abs(gate * up)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32 - 1),
    num_rows=st.integers(0, 20),
    size=st.one_of(st.integers(1, 100), st.sampled_from([4864, 20000])),
    magnitude=st.sampled_from([1e-30, 1e-3, 1.0, 10.0, 100.0, 1e15]),
)
def test_kernel_and_body_are_within_the_contracts_bounds(
    kernel_library: Path, instruction_set: str, seed: int, num_rows: int, size: int, magnitude: float
) -> None:
    gate_up = random_rows(seed, num_rows, size, magnitude)
    expected, unit = exact(gate_up)
    found, stock = run(kernel_library, gate_up), run(None, gate_up)
    assert found.shape == (num_rows, size)
    tiny = 1e-37  # below it float32 loses digits
    assert (np.abs(found - expected) <= 1e-6 * unit + tiny).all()
    assert (np.abs(found - stock) <= 2e-6 * unit + tiny).all()


def test_every_gate_from_minus_to_plus_infinity_gives_what_it_should(
    kernel_library: Path, instruction_set: str
) -> None:
    gate = np.array([[-3e38, -1e4, -88, -0.0, 0.0, 88, 1e4, 3e38, np.inf, np.nan]], np.float32)
    found = run(kernel_library, np.concatenate([gate, np.ones_like(gate)], axis=1))[0]
    np.testing.assert_array_equal(found[[0, 1, 3, 4, 5, 6, 7, 8]], [0, 0, 0, 0, 88, 1e4, gate[0, 7], np.inf])
    assert -1e-34 < found[2] <= 0
    assert np.isnan(found[9])


@pytest.mark.parametrize("size", [1, 15, 33, 4864])
def test_a_row_alone_equals_the_row_in_a_batch(kernel_library: Path, instruction_set: str, size: int) -> None:
    gate_up = random_rows(1, 30, size)
    together = run(kernel_library, gate_up)
    for i in range(len(gate_up)):
        np.testing.assert_array_equal(run(kernel_library, gate_up[i : i + 1])[0], together[i])


def test_an_elements_place_in_its_row_changes_nothing(kernel_library: Path, instruction_set: str) -> None:
    gate, up = np.split(random_rows(2, 1, 50), 2, axis=1)
    whole = run(kernel_library, np.concatenate([gate, up], axis=1))
    for start in (1, 7, 17, 49):
        part = run(kernel_library, np.concatenate([gate[:, start:], up[:, start:]], axis=1))
        np.testing.assert_array_equal(part, whole[:, start:])


def test_the_number_of_threads_changes_nothing(kernel_library: Path, instruction_set: str) -> None:
    gate_up = random_rows(3, 70, 1001)
    np.testing.assert_array_equal(run(kernel_library, gate_up, 1), run(kernel_library, gate_up, 2))
