"""A hub id is downloaded by huggingface_hub: the real client against a hub-shaped server on loopback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import COMMIT, Hub, hub_server

from nanovllm.checkpoint import resolve_model
from nanovllm.model_info import ModelInfo

MODEL = "someone/tiny-chat"


def run(hub: Hub, folder: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """A fresh process: huggingface_hub reads its environment when it is imported."""
    names = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "NANOVLLM_CACHE": str(folder / "cache")}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        env={**names, **settings, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """tiny-chat with files beside it that are not wanted."""
    folder = tmp_path / "repository"
    folder.mkdir()
    for file in resolve_model("tiny-chat").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "pytorch_model.bin").write_bytes(b"never fetched")
    return folder


def test_a_model_is_downloaded_exported_and_answers(checkpoint: Path, tmp_path: Path) -> None:
    question = "What is the capital of France?"
    with hub_server(MODEL, checkpoint) as hub:
        first = run(hub, tmp_path, "nanovllm", "generate", "--model", MODEL, question)
        assert first.returncode == 0, first.stderr
        assert first.stdout == "The capital of France is Paris.\n"
        assert "model.safetensors" in hub.downloads
        assert "pytorch_model.bin" not in hub.downloads

        downloads = len(hub.downloads)
        second = run(hub, tmp_path, "nanovllm", "generate", "--model", MODEL, question)
        assert second.stdout == first.stdout
        assert len(hub.downloads) == downloads, "nothing is downloaded twice"
    offline = run(hub, tmp_path, "nanovllm", "generate", "--model", MODEL, question, HF_HUB_OFFLINE="1")
    assert offline.stdout == first.stdout


def test_export_takes_a_hub_id_and_notes_its_revision(checkpoint: Path, tmp_path: Path) -> None:
    with hub_server(MODEL, checkpoint) as hub:
        result = run(hub, tmp_path, "export", "--model", MODEL, "--revision", COMMIT)
    assert result.returncode == 0, result.stderr
    info = ModelInfo.load(tmp_path / "models" / "tiny-chat-onnx")
    assert (info.source, info.source_revision) == (MODEL, COMMIT)


def test_a_gated_model_needs_the_token_of_the_environment(checkpoint: Path, tmp_path: Path) -> None:
    with hub_server(MODEL, checkpoint, token="hf_secret") as hub:
        refused = run(hub, tmp_path, "export", "--model", MODEL)
        assert refused.returncode == 2
        assert "hf auth login" in refused.stderr
        assert "Traceback" not in refused.stderr
        assert not (tmp_path / "models").exists()
        assert run(hub, tmp_path, "export", "--model", MODEL, HF_TOKEN="hf_secret").returncode == 0


def test_an_id_that_the_hub_does_not_know_is_one_clear_error(checkpoint: Path, tmp_path: Path) -> None:
    with hub_server(MODEL, checkpoint) as hub:
        result = run(hub, tmp_path, "nanovllm", "generate", "--model", "someone/tiny-chatt", "hello")
    assert result.returncode == 2
    assert "'someone/tiny-chatt'" in result.stderr
    assert "Check the name" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_onnx_model_in_a_subfolder_is_fetched_where_there_are_no_weights_at_the_top(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    (repository / "onnx").mkdir(parents=True)
    (repository / "config.json").write_text("{}")
    for name in ("model.onnx", "model.onnx_data", "model_q4.onnx"):
        (repository / "onnx" / name).write_bytes(name.encode())
    with hub_server(MODEL, repository) as hub:
        program = f"from nanovllm.checkpoint import resolve_model; print(resolve_model({MODEL!r}), end='')"
        (tmp_path / "resolve_it.py").write_text(program)
        result = run(hub, tmp_path, "resolve_it")
    assert result.returncode == 0, result.stderr
    found = sorted(p.name for p in Path(result.stdout).rglob("*") if p.is_file())
    assert found == ["config.json", "model.onnx", "model.onnx_data"]
