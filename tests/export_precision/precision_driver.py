"""Runs exports through the plugin's runner, and makes checkpoints with outlying channels that compute the same."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from nanovllm.checkpoint import Checkpoint
from nanovllm.plugins import LogitsModelRunner
from tests.ort.paged_driver import PagedSequence, Work, load_runner, pack

__all__ = ["BLOCK_SIZE", "Float32Array", "load_runner", "step", "with_outliers"]

Float32Array = npt.NDArray[np.float32]
BLOCK_SIZE = 8


def step(runner: LogitsModelRunner, sequences: Sequence[tuple[list[int], int, int, list[int]]]) -> Float32Array:
    """Runs one step; logits of each sequence's last token. sequences: tokens, how many are in the cache, how many are
    new, block table."""
    work = [Work(PagedSequence(tokens, blocks, context), new) for tokens, context, new, blocks in sequences]
    return runner.forward(pack(work, BLOCK_SIZE)).copy()


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
