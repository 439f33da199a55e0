"""The plugin "onnxruntime": what it says it can load, what it loads itself, and exporting on first use."""

import importlib.util
import json
import logging
import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from paged_driver import PagedSequence, Work, load_runner, step

from backends.ort.export_cache import cache_folder, exported
from backends.ort.plugin import nanovllm_model_runners
from export import export_model
from nanovllm.errors import ExportError
from nanovllm.plugins import ModelSource, Verdict
from nanovllm.testing import ReferenceModel, tiny_config, write_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoint")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NANOVLLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def can_load(folder: Path | None) -> Verdict:
    (plugin,) = nanovllm_model_runners()
    return plugin.can_load(ModelSource("model", folder))


def test_it_loads_exports_and_checkpoints(checkpoint: Path, tmp_path: Path) -> None:
    assert can_load(checkpoint) == Verdict(True, "a qwen2 checkpoint, exported on first use")
    folder = export_model(checkpoint, tmp_path / "export", progress=False).folder
    assert can_load(folder) == Verdict(True, "an exported model")


def test_it_says_why_it_cannot_load(checkpoint: Path, tmp_path: Path) -> None:
    assert not can_load(None).loadable
    (tmp_path / "empty").mkdir()
    assert "neither model_info.json with model.onnx nor config.json" in can_load(tmp_path / "empty").reason
    (checkpoint / "config.json").write_text(json.dumps(tiny_config(model_type="mamba")))
    assert "model_type 'mamba' cannot be exported; supported: qwen2" in can_load(checkpoint).reason
    for text in ("{", "[]"):
        (checkpoint / "config.json").write_text(text)
        assert "cannot be read" in can_load(checkpoint).reason
    (checkpoint / "config.json").write_text(json.dumps(tiny_config()))
    (checkpoint / "model.safetensors").unlink()
    assert "model.safetensors" in can_load(checkpoint).reason
    assert not can_load(checkpoint).loadable


@pytest.mark.parametrize("missing", ["onnxruntime", "onnx"])
def test_without_its_packages_it_says_how_to_get_them(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    find_spec = importlib.util.find_spec

    def find_all_but_one(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == missing else find_spec(name, package)

    monkeypatch.setattr("backends.ort.plugin.find_spec", find_all_but_one)
    verdict = can_load(checkpoint)
    assert not verdict.loadable
    assert verdict.reason.startswith(f"{missing} is not installed")
    assert "pip install 'nanovllm[cpu]'" in verdict.reason


def test_asking_it_loads_nothing_heavy(checkpoint: Path) -> None:
    script = """
import sys
from pathlib import Path
from backends.ort.plugin import nanovllm_model_runners
from nanovllm.plugins import ModelSource
(plugin,) = nanovllm_model_runners()
assert plugin.can_load(ModelSource("model", Path(sys.argv[1]))).loadable
print(sorted({"onnxruntime", "onnx", "torch", "export", "ml_dtypes"} & set(sys.modules)))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    command = [sys.executable, "-c", script, str(checkpoint)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.strip() == "[]"


def test_a_checkpoint_is_served_and_exported_only_once(
    checkpoint: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "nanovllm")
    expected = ReferenceModel(checkpoint).logits([5, 6, 7])[-1]
    for _ in range(2):
        runner = load_runner(checkpoint)
        runner.allocate_kv_cache(4, 8)
        ((_, _, logits),) = step(runner, [Work(PagedSequence([5, 6, 7], [2]), 3)], 8)
        assert abs(logits - expected).max() < 1e-4
        runner.close()
    assert [record.message.split()[0] for record in caplog.records] == ["exporting"]
    assert len(list((cache / "exports").iterdir())) == 1


def test_a_changed_checkpoint_is_exported_anew(checkpoint: Path, cache: Path) -> None:
    first = exported(checkpoint)
    assert exported(checkpoint) == first
    (checkpoint / "generation_config.json").write_text('{"eos_token_id": 9}')
    second = exported(checkpoint)
    write_checkpoint(checkpoint, seed=1)
    os.utime(checkpoint / "model.safetensors", ns=(1, 1))
    assert len({first, second, exported(checkpoint)}) == 3


def test_a_broken_export_in_the_cache_is_made_again(
    checkpoint: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = exported(checkpoint)
    complete = (folder / "model.onnx.data").read_bytes()
    (folder / "model.onnx.data").write_bytes(complete[:-1])
    assert exported(checkpoint) == folder
    assert (folder / "model.onnx.data").read_bytes() == complete
    assert any("broken" in record.message for record in caplog.records)


def test_processes_that_export_at_once_agree_on_one_folder(checkpoint: Path, cache: Path) -> None:
    script = """
import sys
from pathlib import Path
from backends.ort.export_cache import exported
print(exported(Path(sys.argv[1])))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    command = [sys.executable, "-c", script, str(checkpoint)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for _ in range(4)
    ]
    results = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, results
    assert {output.strip() for output, _ in results} == {str(exported(checkpoint))}
    assert len(list((cache / "exports").iterdir())) == 1, "nothing half-written is left"


def test_a_cache_that_cannot_be_written_is_an_error_that_says_what_to_do(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NANOVLLM_CACHE", str(tmp_path / "file"))
    with pytest.raises(ExportError, match="NANOVLLM_CACHE"):
        exported(checkpoint)


def test_the_cache_follows_the_users_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    monkeypatch.delenv("NANOVLLM_CACHE", raising=False)
    assert cache_folder() == tmp_path / "nanovllm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("LOCALAPPDATA")
    assert cache_folder() == Path.home() / ".cache" / "nanovllm"
