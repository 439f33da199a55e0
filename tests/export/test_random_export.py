"""`--random-weights`: a known shape or a folder's config, the same model as the folder that the benchmark writes."""

import json
from pathlib import Path

import numpy as np
import pytest

from export import export_model
from export.cli import main
from nanovllm import CheckpointError, ConfigError
from nanovllm.model_info import ModelInfo
from nanovllm.random_weights import RandomCheckpoint
from nanovllm.testing.checkpoints import tiny_config


@pytest.fixture
def shape(tmp_path: Path) -> Path:
    """A folder with nothing but a config.json."""
    folder = tmp_path / "shape"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(tiny_config()))
    return folder


def test_a_config_alone_can_be_exported_and_the_seed_decides(shape: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="safetensors"):
        export_model(shape, tmp_path / "read", progress=False)
    hashes = []
    for i, seed in enumerate((1, 1, 2)):
        report = export_model(shape, tmp_path / str(i), random_weights=True, seed=seed, progress=False)
        info = ModelInfo.load(report.folder)
        assert info.source == f"{shape}, random weights of seed {seed}"
        hashes.append(info.weights[0].sha256)
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_weights_are_those_of_the_random_checkpoint(shape: Path, tmp_path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    report = export_model(shape, tmp_path / "out", random_weights=True, seed=5, progress=False)
    model = onnx.load(str(report.folder / "model.onnx"))
    tables = [t for t in model.graph.initializer if t.name.endswith("model.embed_tokens.weight")]
    drawn = RandomCheckpoint(tiny_config(), seed=5).tensor("model.embed_tokens.weight", (211, 48)).read_float32()
    np.testing.assert_array_equal(numpy_helper.to_array(tables[0]), drawn)


def test_an_unknown_shape_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Qwen/Qwen2-0\.5B-Instruct"):
        export_model("someone/unknown", tmp_path / "out", random_weights=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seed", "1"), "--seed 1 is for --random-weights"),
        (("--optimum-python", "x"), "--optimum-python is for --exporter optimum"),
        (("--exporter", "optimum", "--precision", "int8"), "--precision is not for --exporter optimum"),
        (("--exporter", "optimum", "--verify"), "--verify is not for --exporter optimum"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["--model", "tiny-chat", "--output", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
