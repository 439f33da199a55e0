"""Sketches of int8 rows: how far a number may be from its own, that the errors have no bias, and the bound on sums."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from export import export_model
from export.quantize import BLOCK, dequantize_blocks
from export.sketch import sketch_rows
from nanovllm.testing import tiny_config, write_checkpoint


@st.composite
def tables(draw: st.DrawFn) -> npt.NDArray[np.int8]:
    rows, features = draw(st.integers(1, 6)), draw(st.integers(1, 3 * BLOCK + 1))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    largest = draw(st.sampled_from([0, 1, 7, 8, 100, 127]))
    table = random.integers(-largest, largest + 1, (rows, features), np.int8)
    table[random.random(rows) < 0.2] = 0
    return table


@given(tables(), st.integers(0, 2**32))
def test_every_number_is_within_a_scale_of_its_own(table: npt.NDArray[np.int8], seed: int) -> None:
    blocks, scales = sketch_rows(table, np.random.default_rng(seed))
    assert blocks.dtype == np.uint8
    assert np.isfinite(scales).all()
    errors = dequantize_blocks(blocks, scales, table.shape[1]) - table
    steps = np.abs(scales).repeat(BLOCK, axis=1)[:, : table.shape[1]]
    assert (np.abs(errors) <= steps * (1 + 1e-5)).all()
    assert (np.abs(scales) <= 127 / 7).all()


def test_the_mean_of_many_sketches_is_the_table() -> None:
    table = np.random.default_rng(0).integers(-127, 128, (3, 200), np.int8)
    random = np.random.default_rng(1)
    sketches = [dequantize_blocks(*sketch_rows(table, random), 200) for _ in range(2000)]
    steps = 127 / 7
    assert np.abs(np.mean(sketches, axis=0) - table).max() < 5.5 * steps / 2 / 2000**0.5


@given(st.integers(0, 2**32), st.sampled_from(["normal", "ones", "table", "few"]))
def test_no_sum_of_errors_passes_the_bound(seed: int, kind: str) -> None:
    """Hoeffding's with c = 4, whatever the table and the row that it is multiplied by."""
    random = np.random.default_rng(seed)
    table = random.integers(-9, 10, (400, 300), np.int8) if seed % 2 else np.full((400, 300), 5, np.int8)
    table[:, ::BLOCK] = 127
    x = {
        "normal": random.standard_normal(300),
        "ones": np.ones(300),
        "table": table[7].astype(float),
        "few": np.eye(300)[3] * 100,
    }[kind]
    blocks, scales = sketch_rows(table, random)
    errors = (dequantize_blocks(blocks, scales, 300).astype(np.float64) - table) @ x
    assert (np.abs(errors) <= 4 * np.linalg.norm(x) * np.abs(scales).max(1)).all()


def test_an_export_holds_the_sketch_of_the_rows_that_it_holds(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", tiny_config(vocab_size=5000, hidden_size=300))
    folder = export_model(checkpoint, tmp_path / "export", precision="int8", progress=False).folder
    model = onnx.load(folder / "model.onnx")
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    (head,) = (node for node in model.graph.node if node.op_type == "GreedyHead_v1")
    weight, scale, sketch, sketch_scale, step = (tensors[name] for name in head.input[1:])
    errors = dequantize_blocks(sketch, sketch_scale, 300) - weight * scale[:, None]
    assert (np.abs(errors).max(1) <= step * (1 + 1e-5)).all()
    np.testing.assert_array_equal(step, np.abs(sketch_scale).max(1))
    mean_step = np.abs(sketch_scale).mean()
    assert 0.25 < np.abs(errors).mean() / mean_step < 0.4  # 1 / 3, were numbers equally likely anywhere in a step
