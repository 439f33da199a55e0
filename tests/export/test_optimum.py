"""`--exporter optimum`: its environment is asked for, its failure is ours to report, its folder answers."""

import os
import sys
from pathlib import Path

import pytest

from export.optimum import OPTIMUM_VARIABLE, export_with_optimum
from nanovllm import LLM, ConfigError, ExportError, SamplingParams

OPTIMUM = os.environ.get(OPTIMUM_VARIABLE)


def test_without_an_environment_it_says_how_to_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(OPTIMUM_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match=r"optimum-onnx==0\.1\.0"):
        export_with_optimum("tiny-chat", tmp_path / "out")
    with pytest.raises(ConfigError, match="no Python interpreter at /nowhere"):
        export_with_optimum("tiny-chat", tmp_path / "out", python="/nowhere")


def test_an_interpreter_without_optimum_is_a_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="No module named 'optimum'"):
        export_with_optimum("tiny-chat", tmp_path / "out", python=sys.executable)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.onnx").touch()
    with pytest.raises(ExportError, match="--force"):
        export_with_optimum("tiny-chat", tmp_path / "out", python=sys.executable)


@pytest.mark.skipif(OPTIMUM is None, reason=f"needs an environment with optimum-onnx, named by {OPTIMUM_VARIABLE}")
def test_the_real_optimum_exports_a_folder_that_answers(tmp_path: Path) -> None:
    report = export_with_optimum("tiny-chat", tmp_path / "out")
    assert report.folder == tmp_path / "out"
    with LLM(str(report.folder)) as llm:
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        output = llm.chat(messages, SamplingParams(temperature=0, max_tokens=32))[0]
    assert output.outputs[0].text == "The capital of France is Paris."
