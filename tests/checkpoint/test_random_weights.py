"""Random weights: the same however they are read, and the same in a folder written from them."""

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from nanovllm.architectures import decoder_from_config
from nanovllm.checkpoint import Checkpoint
from nanovllm.known_shapes import KNOWN_SHAPES
from nanovllm.random_weights import RandomCheckpoint, RandomTensor
from nanovllm.testing.checkpoints import tiny_config, weights_of


def random_tensor(name: str, shape: tuple[int, ...], seed: int = 0) -> RandomTensor:
    return RandomCheckpoint({}, seed=seed).tensor(name, shape)


SHAPES = st.lists(st.integers(1, 1500), min_size=1, max_size=2).map(tuple)


@settings(max_examples=30, deadline=None)
@given(shape=SHAPES, max_bytes=st.integers(1, 2**22), data=st.data())
def test_slices_make_the_whole(shape: tuple[int, ...], max_bytes: int, data: st.DataObject) -> None:
    max_bytes = max(max_bytes, 4 * math.prod(shape) // 50)  # bounds the number of slices
    tensor = random_tensor("a.weight", shape, 1)
    whole = tensor.read_float32()
    assert whole.shape == shape
    np.testing.assert_array_equal(np.concatenate(list(tensor.slices(max_bytes))), whole)
    start = data.draw(st.integers(0, shape[0]))
    stop = data.draw(st.integers(start, shape[0]))
    np.testing.assert_array_equal(tensor.read_float32(start, stop), whole[start:stop])


def test_a_tensor_larger_than_a_chunk_is_seamless() -> None:
    tensor = random_tensor("a.weight", (1500, 1500))
    whole = tensor.read_float32()
    np.testing.assert_array_equal(tensor.read_float32(600, 900), whole[600:900])
    assert len(np.unique(whole[:, 0])) > 400, "rows repeat"
    assert whole.std() == pytest.approx(0.02, rel=0.01)


def test_seed_and_name_decide() -> None:
    values = [random_tensor(name, (64,), seed).read_float32() for name, seed in (("a", 0), ("a", 1), ("b", 0))]
    assert not np.array_equal(values[0], values[1])
    assert not np.array_equal(values[0], values[2])


def test_the_gain_of_a_norm_lies_around_one() -> None:
    gain = random_tensor("model.norm.weight", (1000,)).read_float32()
    assert gain.mean() == pytest.approx(1, abs=0.01)


@pytest.fixture(scope="module")
def make_checkpoint() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "make_checkpoint.py"
    spec = importlib.util.spec_from_file_location("make_checkpoint", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("eos_token_id", [2, 4999])
def test_a_written_folder_holds_the_same_model(
    make_checkpoint: ModuleType, tmp_path: Path, eos_token_id: int, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(vocab_size=5000, eos_token_id=eos_token_id)
    make_checkpoint.write_folder(tmp_path, config, 3)
    checkpoint, drawn = Checkpoint(tmp_path), RandomCheckpoint(config, seed=3)
    assert len(checkpoint.tensors) > 10
    for name, tensor in checkpoint.tensors.items():
        np.testing.assert_array_equal(tensor.read_float32(), drawn.tensor(name, tensor.shape).read_float32())
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert sorted(tokenizer.get_vocab().values()) == list(range(5000))
    assert tokenizer.token_to_id("<|im_end|>") == eos_token_id
    assert tokenizer.decode(tokenizer.encode("Wer ist da? 🙂").ids) == "Wer ist da? 🙂"
    assert "Writing" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(KNOWN_SHAPES))
def test_every_known_shape_is_one_that_is_supported(name: str) -> None:
    weights = weights_of(decoder_from_config(KNOWN_SHAPES[name]))
    millions = sum(math.prod(weight.shape) for weight in weights) / 1e6
    stated = {"0.5B": 494, "1.5B": 1544, "7B": 7616, "0.6B": 596, "1.1B": 1100, "135M": 134.5}
    expected = next(size for label, size in stated.items() if f"-{label}" in name)
    assert millions == pytest.approx(expected, rel=0.01)
