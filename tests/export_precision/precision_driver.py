"""Runs exports through the plugin's runner, and makes checkpoints with outlying channels that compute the same."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from backends.ort.plugin import nanovllm_model_runners
from nanovllm.batch import SAMPLING_ROW, Batch, SamplingBatch
from nanovllm.checkpoint import Checkpoint
from nanovllm.config import EngineConfig
from nanovllm.plugins import LogitsModelRunner, ModelSource

Float32Array = npt.NDArray[np.float32]
BLOCK_SIZE = 8


def load_runner(folder: Path) -> LogitsModelRunner:
    (plugin,) = nanovllm_model_runners()
    runner = plugin.factory(ModelSource(str(folder), folder), EngineConfig(model=str(folder), num_threads=1))
    assert isinstance(runner, LogitsModelRunner)
    return runner


def step(runner: LogitsModelRunner, sequences: Sequence[tuple[list[int], int, int, list[int]]]) -> Float32Array:
    """Runs one step; logits of each sequence's last token. sequences: tokens, how many are in the cache, how many are
    new, block table."""
    tokens, positions, slots, starts = [], [], [], [0]
    tables = np.zeros((len(sequences), max(len(blocks) for *_, blocks in sequences)), np.int32)
    for i, (ids, context, new, blocks) in enumerate(sequences):
        tables[i, : len(blocks)] = blocks
        places = np.arange(context, context + new)
        tokens += ids[context : context + new]
        positions += places.tolist()
        slots += (tables[i, places // BLOCK_SIZE] * BLOCK_SIZE + places % BLOCK_SIZE).tolist()
        starts.append(starts[-1] + new)
    num_seqs = len(sequences)
    batch = Batch(
        seq_ids=list(range(num_seqs)),
        released_seq_ids=[],
        token_ids=np.array(tokens, np.int64),
        positions=np.array(positions, np.int64),
        query_start=np.array(starts, np.int32),
        context_lens=np.array([context for _, context, _, _ in sequences], np.int32),
        block_tables=tables,
        slot_mapping=np.array(slots, np.int32),
        logits_indices=np.array(starts[1:], np.int32) - 1,
        logits_start=np.arange(num_seqs + 1, dtype=np.int32),
        adapter_ids=np.zeros(num_seqs, np.int32),
        sampling=SamplingBatch(np.zeros(num_seqs, SAMPLING_ROW), np.zeros(num_seqs, np.int64)),
    )
    return runner.forward(batch).copy()


def with_outliers(source: Path, target: Path, *, factor: float = 100.0, share: float = 0.02) -> Path:
    """The Qwen2 checkpoint with some channels of each norm and of each up_proj made larger by `factor`, and the weights
    that read them smaller: the same function, but hard to quantize."""
    checkpoint = Checkpoint(source)
    weights = {name: tensor.read_float32() for name, tensor in checkpoint.tensors.items()}
    random = np.random.default_rng(0)
    readers = {
        "input_layernorm": [f"self_attn.{part}_proj" for part in "qkv"],
        "post_attention_layernorm": ["mlp.gate_proj", "mlp.up_proj"],
        "mlp.up_proj": ["mlp.down_proj"],
    }
    for layer in range(checkpoint.config["num_hidden_layers"]):
        for writer, linears in readers.items():
            weight = weights[f"model.layers.{layer}.{writer}.weight"]
            channels = random.choice(len(weight), max(1, int(share * len(weight))), replace=False)
            weight[channels] *= factor
            for name in linears:
                weights[f"model.layers.{layer}.{name}.weight"][:, channels] /= factor
    target.mkdir(parents=True)
    for file in source.iterdir():
        if file.suffix == ".json":
            shutil.copy(file, target)
    save_file(weights, target / "model.safetensors")
    return target
