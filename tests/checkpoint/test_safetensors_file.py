"""Reading safetensors: exact values in slices, and broken files found before they do harm."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from nanovllm.errors import CheckpointError
from nanovllm.safetensors_file import read_header

RANDOM = np.random.default_rng(0)


def write_raw(path: Path, header: Any, data: bytes, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def bf16_file(path: Path, values: np.ndarray[Any, Any]) -> Path:
    data = values.astype(ml_dtypes.bfloat16).tobytes()
    entry = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": [0, len(data)]}
    return write_raw(path, {"x": entry, "__metadata__": {"format": "pt"}}, data)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int64", "int8", "uint8", "bool"])
def test_what_the_library_writes_is_read_back(tmp_path: Path, dtype: str) -> None:
    arrays = {name: (RANDOM.normal(size=(5, 3)) * 10).astype(dtype) for name in ("b", "a")}
    save_file(arrays, tmp_path / "x.safetensors")
    tensors = read_header(tmp_path / "x.safetensors")
    assert tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(tensors[name].read(), array)
        assert tensors[name].read().dtype == array.dtype


def test_bf16_slices_are_exact(tmp_path: Path) -> None:
    values = RANDOM.normal(size=(10, 7))
    tensor = read_header(bf16_file(tmp_path / "x", values))["x"]
    expected = values.astype(ml_dtypes.bfloat16)
    assert tensor.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(tensor.read(3, 6), expected[3:6])
    np.testing.assert_array_equal(tensor.read_float32(-4), expected[-4:].astype(np.float32))
    np.testing.assert_array_equal(tensor.read(8, 99), expected[8:])
    assert tensor.read(6, 3).shape == (0, 7)
    assert tensor.read_float32().dtype == np.float32


def test_scalars_and_empty_tensors_are_read(tmp_path: Path) -> None:
    save_file({"scalar": np.array(3.5, np.float32), "empty": np.zeros((0, 4), np.float32)}, tmp_path / "x")
    tensors = read_header(tmp_path / "x")
    assert tensors["scalar"].read() == np.float32(3.5)
    assert [values.item() for values in tensors["scalar"].slices(1)] == [3.5]
    assert tensors["empty"].read().shape == (0, 4)


@pytest.mark.parametrize("max_bytes", [1, 28, 60, 10_000])
def test_slices_cover_the_tensor_in_order(tmp_path: Path, max_bytes: int) -> None:
    tensor = read_header(bf16_file(tmp_path / "x", RANDOM.normal(size=(10, 7))))["x"]
    slices = list(tensor.slices(max_bytes))
    assert all(len(part) == 1 or part.nbytes <= max_bytes for part in slices)
    np.testing.assert_array_equal(np.concatenate(slices), tensor.read_float32())


def test_reading_by_slices_holds_little_memory(tmp_path: Path) -> None:
    tensor = read_header(bf16_file(tmp_path / "x", np.ones((4096, 512), np.float32)))["x"]
    tracemalloc.start()
    for _ in tensor.slices(64 * 1024):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 512 * 1024 < tensor.num_bytes


def test_a_file_cut_short_is_found_by_its_header(tmp_path: Path) -> None:
    path = bf16_file(tmp_path / "x", RANDOM.normal(size=(10, 7)))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"cut short.*tensor 'x' ends at byte"):
        read_header(path)


def test_a_file_cut_short_after_it_was_opened_is_found_when_read(tmp_path: Path) -> None:
    path = bf16_file(tmp_path / "x", RANDOM.normal(size=(10, 7)))
    tensor = read_header(path)["x"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="ends within tensor 'x'"):
        tensor.read()


def entry(dtype: Any = "F32", shape: Any = (2, 2), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"{not json", "not JSON"),
        (b"[]", "not a JSON object"),
        (entry(dtype="F3"), "entry of tensor 'x' is broken"),
        (entry(shape=None), "entry of tensor 'x' is broken"),
        (entry(offsets=[0]), "entry of tensor 'x' is broken"),
        ({"x": 1}, "entry of tensor 'x' is broken"),
        (entry(shape=[3, 2]), "needs 24 bytes"),
        (entry(offsets=[-16, 0]), "offsets are -16 to 0"),
        (entry(shape=[-2, -2]), "offsets"),
        (entry(offsets=[16, 32]), "cut short"),
    ],
)
def test_a_broken_header_is_refused(tmp_path: Path, header: Any, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        read_header(write_raw(tmp_path / "x", header, bytes(16)))


@pytest.mark.parametrize("length", [10**6, 2**63])
def test_a_header_longer_than_the_file_is_refused_unread(tmp_path: Path, length: int) -> None:
    with pytest.raises(CheckpointError, match="cut short"):
        read_header(write_raw(tmp_path / "x", {}, b"", length))


@pytest.mark.parametrize("content", [b"", b"abc", b"\0" * 8])
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(CheckpointError):
        read_header(tmp_path / "x")
