"""Every precision exports and runs, in all shapes, and what a request gets does not depend on the others."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from precision_driver import BLOCK_SIZE, load_runner, step

from backends.ort.kernels.library import kernel_status
from export import export_model
from export.precision import PRECISIONS
from nanovllm.checkpoint import Checkpoint
from nanovllm.errors import CheckpointError, ExportError
from nanovllm.model_info import ModelInfo
from nanovllm.plugins import ModelRunner
from nanovllm.testing import (
    ModelRunnerConformance,
    ReferenceModel,
    teacher_forced_logits,
    tiny_config,
    write_checkpoint,
)

CONFIGS: dict[str, dict[str, Any]] = {
    "tied, 48 features": {},
    "untied, 200 features": {
        "tie_word_embeddings": False,
        "hidden_size": 200,
        "intermediate_size": 333,
        "num_attention_heads": 4,
        "head_dim": 24,
    },
}
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-4, "bf16": 1e-4, "int8": 0.1, "int8w": 0.1, "int4": 0.8}
"""Relative error of logits, root mean square. Random weights multiply errors; a trained model is judged elsewhere."""


def relative_error(logits: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    return float(np.sqrt(((logits - expected) ** 2).mean() / expected.var()))


@pytest.fixture(scope="module", params=CONFIGS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint", tiny_config(**CONFIGS[request.param]))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_runs_close_to_float32(checkpoint: Path, tmp_path: Path, precision: str) -> None:
    folder = export_model(checkpoint, tmp_path / "out", precision=precision, progress=False).folder
    onnx.checker.check_model(str(folder / "model.onnx"))
    tokens = np.random.default_rng(0).integers(0, 211, 60).tolist()
    runner = load_runner(folder)
    logits = teacher_forced_logits(runner, tokens)
    runner.close()
    assert logits.dtype == np.float32
    assert relative_error(logits, ReferenceModel(checkpoint).logits(tokens)) < TOLERANCE[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_tied_table_is_stored_once_and_an_untied_head_beside_it(
    checkpoint: Path, tmp_path: Path, precision: str
) -> None:
    folder = export_model(checkpoint, tmp_path / "out", precision=precision, progress=False).folder
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    tables = [t for t in graph.initializer if t.dims[0] == 211 and not t.name.endswith((".scale", ".sketch", ".step"))]
    is_tied = Checkpoint(checkpoint).config["tie_word_embeddings"]
    assert len(tables) == (1 if is_tied else 2)


@pytest.mark.parametrize("precision", ["int8w", "int4"])
def test_accuracy_level_is_never_left_out(checkpoint: Path, tmp_path: Path, precision: str) -> None:
    folder = export_model(checkpoint, tmp_path / "out", precision=precision, progress=False).folder
    functions = onnx.load(folder / "model.onnx", load_external_data=False).functions
    nodes = [node for function in functions for node in function.node if node.op_type == "MatMulNBits"]
    assert nodes
    for node in nodes:
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        assert (attributes["accuracy_level"], attributes["block_size"]) == (4, 128)


@pytest.mark.parametrize("precision", ["int8", "int8w", "int4"])
def test_it_gives_the_same_bits_alone_and_in_any_batch(checkpoint: Path, tmp_path: Path, precision: str) -> None:
    if precision != "int8" and kernel_status().library is None:
        pytest.skip("no kernel library is used, and MatMulNBits adds up in other orders for other numbers of rows")
    runner = load_runner(export_model(checkpoint, tmp_path / "out", precision=precision, progress=False).folder)
    random = np.random.default_rng(1)
    lens = (30, 30, 17, 5, 47, 2)
    texts = [random.integers(0, 211, n).tolist() for n in lens]
    free = random.permutation(64).tolist()
    blocks = [[free.pop() for _ in range(-(-n // BLOCK_SIZE))] for n in lens]
    sequences = list(zip(texts, blocks, strict=True))
    runner.allocate_kv_cache(64, BLOCK_SIZE)
    alone = []
    for ids, table in sequences:
        prefill = step(runner, [(ids, 0, len(ids) - 1, table)])
        alone.append((prefill[0], step(runner, [(ids, len(ids) - 1, 1, table)])[0]))
    runner.allocate_kv_cache(64, BLOCK_SIZE)
    prefills = step(runner, [(ids, 0, len(ids) - 1, table) for ids, table in sequences])
    decodes = step(runner, [(ids, len(ids) - 1, 1, table) for ids, table in sequences])
    runner.close()
    for i, (prefill, decode) in enumerate(alone):
        np.testing.assert_array_equal(prefills[i], prefill)
        np.testing.assert_array_equal(decodes[i], decode)


def test_what_is_not_finite_is_refused_by_name(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = write_checkpoint(tmp_path / "model", dtype="float32")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.self_attn.o_proj.weight"][3, 4] = np.nan
    save_file(weights, folder / "model.safetensors")
    for precision in ("int8", "int8w", "int4"):
        with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.o_proj.* not finite"):
            export_model(folder, tmp_path / "out", precision=precision, progress=False)


def test_a_value_that_float16_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = write_checkpoint(tmp_path / "model", dtype="float32")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = 1e6
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ExportError, match=r"up_proj.* holds 1e\+06, which float16 cannot"):
        export_model(folder, tmp_path / "out", precision="fp16", progress=False)
    export_model(folder, tmp_path / "out", precision="fp16", keep=["layers.1=bf16"], progress=False)


class TestInt8Conformance(ModelRunnerConformance):
    """The laws that every runner keeps, with int8 weights."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        root = tmp_path_factory.mktemp("conformance")
        checkpoint = write_checkpoint(root / "model")
        self.folder = export_model(checkpoint, root / "export", precision="int8", progress=False).folder

    def make_runner(self) -> ModelRunner:
        return load_runner(self.folder)


def test_model_info_says_what_each_kind_of_layer_became(checkpoint: Path, tmp_path: Path) -> None:
    folder = export_model(checkpoint, tmp_path / "out", precision="int4", progress=False).folder
    quantization = ModelInfo.load(folder).quantization
    assert quantization is not None
    assert quantization["precision"] == "int4"
    assert quantization["layers"]["self_attn.q_proj"] == {"int4": 2}
    assert quantization["layers"]["lm_head"] == quantization["layers"]["embed_tokens"] == {"int8": 1}
    assert quantization["meaning"].keys() == {"int8", "int4"}
