"""Fused, stacked and turned weights of a checkpoint: exported once, whole, and in little memory; idle windows."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from family_configs import CASES
from transformers_model import TransformersModel

from export import export_model
from nanovllm.architectures.layers import cut, linear, rows, turned
from nanovllm.architectures.ops import Stored, Weight
from nanovllm.checkpoint import Checkpoint


@pytest.mark.parametrize("name", ["phi3-short", "gpt2", "falcon-40b", "granitemoe", "qwen3-moe"])
def test_every_number_of_the_checkpoint_is_in_the_export_once(name: str, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == name)
    TransformersModel(case.config, tmp_path / "model")
    report = export_model(tmp_path / "model", tmp_path / "out", progress=False)
    tensors = Checkpoint(tmp_path / "model").tensors.values()
    num_parameters = sum(int(np.prod(tensor.shape)) for tensor in tensors)
    assert report.num_parameters == num_parameters
    graph = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False).graph
    weights = [tensor for tensor in graph.initializer if not tensor.name.startswith("rope.")]
    assert sum(int(np.prod(tensor.dims)) for tensor in weights) == num_parameters


def test_the_onnx_checker_passes_with_experts_and_shape_inference(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "granitemoe")
    TransformersModel(case.config, tmp_path / "model")
    export_model(tmp_path / "model", tmp_path / "out", progress=False)
    onnx.checker.check_model(str(tmp_path / "out" / "model.onnx"), full_check=True)


def test_a_turned_weight_much_larger_than_a_slice_takes_little_memory(tmp_path: Path) -> None:
    features, inner = 32, 600_000  # 77 MB of fp32 each way
    config = {"model_type": "gpt2", "vocab_size": 8, "n_embd": features, "n_head": 2, "n_layer": 1, "n_positions": 8}
    write_zeros(
        tmp_path / "model",
        {**config, "n_inner": inner},
        {
            "wte.weight": [8, features],
            "wpe.weight": [8, features],
            "h.0.attn.c_attn.weight": [features, 3 * features],
            "h.0.attn.c_attn.bias": [3 * features],
            "h.0.attn.c_proj.weight": [features, features],
            "h.0.attn.c_proj.bias": [features],
            "h.0.mlp.c_fc.weight": [features, inner],
            "h.0.mlp.c_fc.bias": [inner],
            "h.0.mlp.c_proj.weight": [inner, features],
            "h.0.mlp.c_proj.bias": [features],
            **{
                f"{norm}.{part}": [features] for norm in ("h.0.ln_1", "h.0.ln_2", "ln_f") for part in ("weight", "bias")
            },
        },
    )
    tracemalloc.start()
    report = export_model(tmp_path / "model", tmp_path / "out", progress=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6 < 150e6 < report.num_bytes


def write_zeros(folder: Path, config: dict[str, Any], shapes: dict[str, list[int]]) -> None:
    """A checkpoint of bf16 zeros, which on disk are a hole."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    header, position = {}, 0
    for name, shape in shapes.items():
        end = position + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + position)


def test_parts_of_a_weight_say_where_they_lie() -> None:
    first, second = cut(linear("fused", 4, 5, bias=True), (2, 3))
    assert first.weight == Weight("fused.weight", (2, 4), Stored((5, 4), ((0, 2),)))
    assert second.bias == Weight("fused.bias", (3,), Stored((5,), ((2, 5),)))
    assert second.weight.stored_shape == (5, 4)
    stack = Weight("stack", (3, 2, 4))
    assert rows(stack, (4, 6)) == Weight("stack", (2, 4), Stored((3, 2, 4), ((4, 6),)))
    (part,) = cut(turned(linear("turned", 4, 5)), (5,))
    assert part.weight == Weight("turned.weight", (5, 4), Stored((4, 5), ((0, 5),), transposed=True))


def test_a_window_that_no_sequence_outgrows_is_left_out(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "mistral")  # its window is 7
    TransformersModel(case.config, tmp_path / "model")
    windows = {}
    for length in (7, 8):
        folder = export_model(tmp_path / "model", tmp_path / str(length), max_model_len=length, progress=False).folder
        nodes = onnx.load(folder / "model.onnx", load_external_data=False).graph.node
        attributes = [a for node in nodes if node.domain == "nanovllm" for a in node.attribute if a.name == "window"]
        windows[length] = {attribute.i for attribute in attributes}
    assert windows == {7: {0}, 8: {7}}
