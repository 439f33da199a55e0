"""Checkpoint: configs, single and sharded weights, and errors that name what is wrong."""

import json
from pathlib import Path

import numpy as np
import pytest

from nanovllm.checkpoint import Checkpoint, weight_files
from nanovllm.errors import CheckpointError
from nanovllm.testing import write_checkpoint

EMBEDDING = "model.embed_tokens.weight"


def test_one_file_and_shards_give_the_same_names(tmp_path: Path) -> None:
    single = Checkpoint(write_checkpoint(tmp_path / "single"))
    sharded = Checkpoint(write_checkpoint(tmp_path / "sharded", num_shards=3))
    assert single.tensors.keys() == sharded.tensors.keys()
    assert len({tensor.file for tensor in sharded.tensors.values()}) == 3
    assert len(weight_files(tmp_path / "sharded")) == 3
    assert weight_files(tmp_path / "single") == [tmp_path / "single" / "model.safetensors"]


def test_generation_config_is_empty_where_there_is_none(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    assert Checkpoint(folder).generation_config == {}
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    assert Checkpoint(folder).generation_config == {"eos_token_id": [1, 2]}


def test_a_missing_tensor_is_named_with_its_nearest_neighbour(tmp_path: Path) -> None:
    checkpoint = Checkpoint(write_checkpoint(tmp_path / "model"))
    with pytest.raises(CheckpointError, match=r"no tensor 'model.embed_token.weight'.*'model.embed_tokens.weight'"):
        checkpoint.tensor("model.embed_token.weight")


def test_a_shape_that_the_config_does_not_imply_is_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint(write_checkpoint(tmp_path / "model"))
    assert checkpoint.tensor(EMBEDDING, (211, 48)).shape == (211, 48)
    with pytest.raises(CheckpointError, match=r"shape \(211, 48\), but config.json implies \(212, 48\)"):
        checkpoint.tensor(EMBEDDING, (212, 48))


def test_pickled_weights_are_refused_with_the_way_out(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="safe_serialization=True"):
        Checkpoint(folder)


def test_a_folder_without_weights_or_config_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"neither model.safetensors nor model.safetensors.index.json"):
        Checkpoint(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config.json does not exist"):
        Checkpoint(folder)


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_broken_config_is_refused(tmp_path: Path, text: str) -> None:
    folder = write_checkpoint(tmp_path / "model")
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config.json"):
        Checkpoint(folder)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", num_shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002.safetensors is missing"):
        Checkpoint(folder)


@pytest.mark.parametrize("file", ["../secret.safetensors", "/etc/passwd", 3, ""])
def test_an_index_must_name_files_of_the_folder(tmp_path: Path, file: object) -> None:
    folder = write_checkpoint(tmp_path / "model", num_shards=2)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {EMBEDDING: file}}))
    with pytest.raises(CheckpointError, match="is no file name"):
        Checkpoint(folder)


def test_an_index_that_points_to_the_wrong_shard_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", num_shards=2)
    index = folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    names = sorted(set(weight_map.values()))
    weight_map[EMBEDDING] = next(name for name in names if name != weight_map[EMBEDDING])
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match="it is not there"):
        Checkpoint(folder)


def test_nothing_stays_open(tmp_path: Path) -> None:
    checkpoint = Checkpoint(write_checkpoint(tmp_path / "model"))
    before = checkpoint.tensor(EMBEDDING).read_float32()
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "elsewhere")
    assert np.isfinite(before).all()
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.tensor(EMBEDDING).read()
