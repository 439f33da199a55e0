"""Which graphs pick greedy tokens themselves."""

from pathlib import Path
from typing import Any

import onnx
import pytest

from export import export_model
from nanovllm.model_info import ModelInfo
from nanovllm.testing import tiny_config, write_checkpoint

POWER_OF_NOTHING = {"embedding_multiplier": 1.0, "residual_multiplier": 1.0, "attention_multiplier": 0.25}


def exported(tmp_path: Path, config: dict[str, Any] | None = None, **options: Any) -> Path:
    checkpoint = write_checkpoint(tmp_path / "some-model", config or tiny_config())
    return export_model(checkpoint, tmp_path / "out", progress=False, **options).folder


def names(folder: Path) -> tuple[set[str], set[str]]:
    """Of inputs and outputs of the graph."""
    info = ModelInfo.load(folder)
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    found = {value.name for value in graph.input}, {value.name for value in graph.output}
    assert found == ({tensor.name for tensor in info.inputs}, {tensor.name for tensor in info.outputs})
    return found


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("tied", [True, False])
def test_an_int8_head_does(tmp_path: Path, precision: str, tied: bool) -> None:
    folder = exported(tmp_path, tiny_config(tie_word_embeddings=tied), precision=precision)
    inputs, outputs = names(folder)
    assert "greedy_indices" in inputs
    assert "greedy_ids" in outputs
    onnx.checker.check_model(str(folder / "model.onnx"))


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_it_loads_where_sums_of_8_bits_saturate(tmp_path: Path, precision: str) -> None:
    """On processors without VNNI, ONNX Runtime rewrites the weights of int8 products, each once."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.add_session_config_entry("session.x64quantprecision", "1")
    onnxruntime.InferenceSession(exported(tmp_path, precision=precision) / "model.onnx", settings)


@pytest.mark.parametrize("options", [{"precision": "fp32"}, {"precision": "int8", "keep": ["lm_head=int8w"]}])
def test_another_head_does_not(tmp_path: Path, options: dict[str, Any]) -> None:
    inputs, outputs = names(exported(tmp_path, **options))
    assert "greedy_indices" not in inputs
    assert "greedy_ids" not in outputs


@pytest.mark.parametrize(
    "config",
    [
        tiny_config(model_type="gemma2", num_attention_heads=4, num_key_value_heads=2),
        tiny_config(model_type="granite", logits_scaling=3.0, **POWER_OF_NOTHING),
        tiny_config(model_type="phi", hidden_size=64, num_attention_heads=4, num_key_value_heads=4, head_dim=16),
    ],
    ids=["a cap", "a factor", "a bias"],
)
def test_a_head_that_something_follows_does_not(tmp_path: Path, config: dict[str, Any]) -> None:
    inputs, _ = names(exported(tmp_path, config, precision="int8"))
    assert "greedy_indices" not in inputs


def test_the_sketch_can_be_left_out(tmp_path: Path) -> None:
    folder = exported(tmp_path, precision="int8", sketch=False)
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    (head,) = (node for node in graph.node if node.op_type == "GreedyHead_v1")
    assert len(head.input) == 3
    assert not [tensor.name for tensor in graph.initializer if "sketch" in tensor.name]
