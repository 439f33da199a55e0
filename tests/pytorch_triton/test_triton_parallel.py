"""Two ranks on the Triton kernels, interpreted, give the tokens of the CPU's own path."""

import numpy as np
import pytest

from nanovllm.testing import tiny_config, write_checkpoint
from tests.pytorch.device_driver import (
    RerunGraph,
    Sequences,
    load_device,
    one_after_the_other,
    overlapped,
    sampling_row,
)
from tests.pytorch_parallel.rank_driver import load_parallel_device

PROMPTS = {0: [1, 2, 3], 1: [4], 2: list(range(20))}
STEPS = [{0, 1, 2}, {1, 2}, {0}, {0, 1, 2}]


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("num_kv_heads", [2, 1])
def test_ranks_on_these_kernels_give_the_tokens_of_one(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, num_kv_heads: int
) -> None:
    config = tiny_config(num_attention_heads=4, num_key_value_heads=num_kv_heads)
    folder = write_checkpoint(tmp_path_factory.mktemp("model"), config)
    rows = np.concatenate([sampling_row(), sampling_row(temperature=0.9, seed=3), sampling_row()])
    expected = one_after_the_other(load_device(folder), Sequences(rows), PROMPTS, STEPS)
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # for the other rank's process
    runner = load_parallel_device(folder, triton=True, capture=RerunGraph)
    try:
        assert overlapped(runner, Sequences(rows), PROMPTS, STEPS) == expected
    finally:
        runner.close()
