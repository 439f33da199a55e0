"""Weights reach the device in the dtype that was chosen, whole, and without a second copy of the model."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_driver import load_runner

from backends.pytorch.precision import choose_dtype, is_quick_on_cpu, stored_dtype
from backends.pytorch.weights import Weights
from nanovllm.architectures import Stored, Weight
from nanovllm.checkpoint import Checkpoint
from nanovllm.random_weights import random_checkpoint
from nanovllm.testing import ReferenceModel, teacher_forced_logits, tiny_config, write_checkpoint

CPU = torch.device("cpu")
TABLE = Weight("model.embed_tokens.weight", (211, 48))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("num_shards", [1, 3])
def test_every_stored_dtype_in_one_file_or_several_gives_the_oracles_logits(
    tmp_path: Path, dtype: str, num_shards: int
) -> None:
    folder = write_checkpoint(tmp_path / "model", dtype=dtype, num_shards=num_shards)
    runner = load_runner(folder)
    tokens = [3, 1, 4, 1, 5, 9]
    np.testing.assert_allclose(
        teacher_forced_logits(runner, tokens), ReferenceModel(folder).logits(tokens), atol=1e-4, rtol=0
    )
    runner.close()


def test_parts_and_turned_parts_of_tensors(tmp_path: Path) -> None:
    checkpoint = Checkpoint(write_checkpoint(tmp_path / "model", dtype="float32"))
    whole = torch.from_numpy(checkpoint.tensor(TABLE.name).read())
    weights = Weights(checkpoint, torch.float32, CPU)
    ranges = ((5, 7), (0, 2))
    part = Weight(TABLE.name, (4, 48), Stored(TABLE.shape, ranges))
    turned = Weight(TABLE.name, (4, 211), Stored(TABLE.shape, ranges, transposed=True))
    assert torch.equal(weights.merged([part, TABLE]), torch.cat((whole[5:7], whole[:2], whole)))
    assert torch.equal(weights.merged([turned]), torch.cat((whole.T[5:7], whole.T[:2])))


def test_a_table_is_left_in_its_file(tmp_path: Path) -> None:
    checkpoint = Checkpoint(write_checkpoint(tmp_path / "model", dtype="bfloat16"))
    table = Weights(checkpoint, torch.float32, CPU).table(TABLE)
    assert table.dtype == torch.bfloat16
    assert torch.equal(table.float(), torch.from_numpy(checkpoint.tensor(TABLE.name).read_float32()))


def test_a_table_that_is_not_in_a_file_and_the_head_of_that_name_are_held_once(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(write_checkpoint(tmp_path / "model"))
    weights = Weights(checkpoint, torch.bfloat16, CPU)
    apart = weights.merged([TABLE])
    table, head = weights.table(TABLE), weights.merged([TABLE])
    assert table.data_ptr() == head.data_ptr() != apart.data_ptr()
    assert torch.equal(head, apart)
    rank_part = Weight(TABLE.name, (60, 48), Stored(TABLE.shape, ((100, 160),)))
    rows = weights.merged([rank_part])
    assert rows.data_ptr() == table[100:].data_ptr()
    assert torch.equal(rows, apart[100:160])
    for ranges, transposed in (((5, 7), (0, 2)), False), (((0, 4),), True):
        other = Weight(TABLE.name, (4, 48), Stored(TABLE.shape, ranges, transposed))
        rows = torch.cat([(apart.T if transposed else apart)[start:stop] for start, stop in ranges])
        assert torch.equal(weights.merged([replace(other, shape=tuple(rows.shape))]), rows)
    assert torch.equal(weights.merged([TABLE, TABLE]), torch.cat([apart, apart]))


def test_auto_takes_the_checkpoints_dtype_only_where_the_processor_is_quick_in_it(tmp_path: Path) -> None:
    for name in ("float32", "bfloat16", "float16"):
        dtype = getattr(torch, name)
        checkpoint = Checkpoint(write_checkpoint(tmp_path / name, dtype=name))
        assert stored_dtype(checkpoint) == dtype
        assert choose_dtype("auto", checkpoint, CPU) == (dtype if is_quick_on_cpu(dtype) else torch.float32)
        assert choose_dtype("bfloat16", checkpoint, CPU) == torch.bfloat16
    assert is_quick_on_cpu(torch.float32)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's memory from /proc")
def test_loading_holds_no_second_copy_of_the_model(tmp_path: Path) -> None:
    config = tiny_config(vocab_size=40_000, hidden_size=512, intermediate_size=8192, num_hidden_layers=6)
    folder = write_checkpoint(tmp_path / "model", config, dtype="bfloat16")
    num_bytes = (folder / "model.safetensors").stat().st_size
    script = """
import resource, sys
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from torch_driver import load_runner
import torch
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
torch.ops.mkldnn._reorder_linear_weight(torch.zeros(64, 64), 48)
before = peak()
runner = load_runner(Path(sys.argv[1]), dtype="bfloat16")
print(peak() - before)
"""
    command = [sys.executable, "-c", script, str(folder), *[entry for entry in sys.path if entry]]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
    assert num_bytes > 150 * 2**20, "too small to tell"
    assert int(result.stdout) < 1.4 * num_bytes
