"""An export's memory does not grow with the number of layers, in any precision."""

import gc
import tracemalloc
from pathlib import Path
from typing import Any, cast

import pytest

from export.graph import build_graph
from export.precision import PRECISIONS, PrecisionPlan
from nanovllm.architectures import decoder_from_config
from nanovllm.checkpoint import Checkpoint
from nanovllm.random_weights import RandomCheckpoint
from nanovllm.testing import tiny_config

LAYER_BYTES = 4 * (4 * 128 * 128 + 3 * 128 * 1024)


def peak_bytes_of_writing(folder: Path, precision: str, num_layers: int) -> int:
    config: dict[str, Any] = tiny_config(
        vocab_size=64,
        hidden_size=128,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=16,
        intermediate_size=1024,
        num_hidden_layers=num_layers,
    )
    checkpoint = cast(Checkpoint, RandomCheckpoint(config))
    plan = build_graph(
        decoder_from_config(config),
        checkpoint,
        max_model_len=64,
        producer_version="test",
        precisions=PrecisionPlan(precision),
    ).plan
    gc.collect()
    tracemalloc.start()
    try:
        plan.write(folder, lambda num_bytes: None)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_four_times_the_layers_take_the_same_memory(tmp_path: Path, precision: str) -> None:
    few, many = (peak_bytes_of_writing(tmp_path, precision, num_layers) for num_layers in (12, 48))
    assert many - few < LAYER_BYTES / 2, "a layer's factors of smoothing may stay, its weights may not"
    assert many < 40 * 2**20
