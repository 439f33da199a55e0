"""--keep: which layers a pattern names, what they become, and what is refused."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from precision_driver import load_runner

from export import export_model
from export.precision import KeepRule, PrecisionPlan, parse_keep
from nanovllm.architectures import Weight
from nanovllm.errors import ConfigError
from nanovllm.model_info import ModelInfo
from nanovllm.testing import ReferenceModel, teacher_forced_logits, write_checkpoint

NAME = "model.layers.1.self_attn.q_proj"


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        *[("q_proj", True), ("layers.1", True), ("self_attn", True), (NAME, True), ("model", True), ("*", True)],
        *[("layers.*.q_proj", True), ("[qk]_proj", True), ("layers.?.self_attn", True), ("layers.1.*.q_proj", True)],
        *[("proj", False), ("layers", True), ("layers.10", False), ("q_pro", False), ("k_proj", False), ("1.q", False)],
    ],
)
def test_a_pattern_is_held_against_whole_parts_of_the_name(pattern: str, matches: bool) -> None:
    assert KeepRule(pattern, "int8").matches(NAME) == matches


def test_layers_1_does_not_name_layer_10() -> None:
    assert not KeepRule("layers.1", "int8").matches("model.layers.10.mlp.up_proj")


def test_rules_come_in_lists_and_the_first_that_matches_counts() -> None:
    rules = parse_keep(["lm_head=fp32, layers.0=int8", "q_proj=bf16"])
    plan = PrecisionPlan("int4", rules)
    assert plan.of_linear(Weight("model.embed_tokens.weight", (2, 2)), "vocab") == "fp32"
    assert plan.of_linear(Weight("model.layers.0.q_proj.weight", (2, 2)), "column") == "int8"
    assert plan.of_linear(Weight("model.layers.1.q_proj.weight", (2, 2)), "column") == "bf16"
    assert plan.of_linear(Weight("model.layers.1.k_proj.weight", (2, 2)), "column") == "int4"
    plan.check_all_used()


@pytest.mark.parametrize("text", ["lm_head", "=int8", "lm_head=int5", "lm_head="])
def test_a_rule_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"PATTERN=PRECISION|exports fp32, fp16"):
        parse_keep([text])


def test_a_rule_that_no_layer_matches_is_refused_with_the_nearest_kind(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"'qproj', but no layer matches it.*q_proj"):
        export_model(checkpoint, tmp_path / "out", precision="int8", keep=["qproj=fp32"], progress=False)
    assert not (tmp_path / "out").exists()


def test_layers_that_are_kept_back_bring_the_model_closer_to_float32(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "model")
    tokens = np.random.default_rng(0).integers(0, 211, 40).tolist()
    expected = ReferenceModel(checkpoint).logits(tokens)
    errors = []
    for i, keep in enumerate(
        [[], ["mlp=fp32"], ["mlp=fp32,self_attn=fp32"], ["mlp=fp32", "self_attn=fp32,lm_head=fp32"]]
    ):
        folder = export_model(checkpoint, tmp_path / str(i), precision="int4", keep=keep, progress=False).folder
        runner = load_runner(folder)
        errors.append(float(np.abs(teacher_forced_logits(runner, tokens) - expected).mean()))
        runner.close()
    assert errors == sorted(errors, reverse=True)


def test_a_tied_table_is_stored_twice_where_head_and_embedding_differ(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "model")
    folder = export_model(checkpoint, tmp_path / "out", precision="int8", keep=["lm_head=fp32"], progress=False).folder
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    types = {tensor.data_type for tensor in graph.initializer if list(tensor.dims) == [211, 48]}
    assert types == {onnx.TensorProto.INT8, onnx.TensorProto.FLOAT}
    assert ModelInfo.load(folder).quantization == {
        "precision": "int8",
        "keep": {"lm_head": "fp32"},
        "layers": {
            "embed_tokens": {"int8": 1},
            **{f"self_attn.{part}_proj": {"int8": 2} for part in "qkvo"},
            **{f"mlp.{part}_proj": {"int8": 2} for part in ("gate", "up", "down")},
            "lm_head": {"fp32": 1},
        },
        "meaning": {
            "fp32": "weights as float32",
            "int8": "int8 weights, one scale a row; inputs quantized to int8 row by row",
        },
    }


def test_layers_of_one_input_in_three_precisions_give_what_they_give_apart(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "model")
    tokens = np.random.default_rng(0).integers(0, 211, 40).tolist()
    keep = ["k_proj=fp16,v_proj=int8"]
    folder = export_model(checkpoint, tmp_path / "out", precision="fp32", keep=keep, progress=False).folder
    runner = load_runner(folder)
    logits, expected = teacher_forced_logits(runner, tokens), ReferenceModel(checkpoint).logits(tokens)
    runner.close()
    assert 1e-4 < np.abs(logits - expected).max() < 0.5
