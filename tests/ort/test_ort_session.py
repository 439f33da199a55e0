"""What is wrong with an exported folder is said in words before ONNX Runtime's native code meets it."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from paged_driver import load_runner

from export import export_model
from nanovllm.errors import BackendError, ConfigError, ModelError, ModelInfoError
from nanovllm.model_info import ModelInfo
from nanovllm.testing import write_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return export_model(write_checkpoint(tmp_path / "checkpoint"), tmp_path / "export", progress=False).folder


def change_info(folder: Path, **changes: Any) -> None:
    path = folder / "model_info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("kept", [0, 4096, -1])
def test_weights_cut_short_are_found_by_their_size(folder: Path, kept: int) -> None:
    data = folder / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:kept])
    with pytest.raises(ModelError, match=r"model.onnx.data has \d+ bytes, but \d+ were written"):
        load_runner(folder)


def test_missing_weights_are_named(folder: Path) -> None:
    (folder / "model.onnx.data").unlink()
    with pytest.raises(ModelError, match=r"model.onnx.data does not exist. Copy the whole folder"):
        load_runner(folder)


@pytest.mark.parametrize("content", [b"", b"not a graph"])
def test_a_broken_graph_is_a_model_error_with_the_fix(folder: Path, content: bytes) -> None:
    (folder / "model.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=r"(?s)cannot load .*model.onnx.*Export the model again"):
        load_runner(folder)


def test_a_newer_schema_is_refused(folder: Path) -> None:
    change_info(folder, schema_version=99)
    with pytest.raises(ModelInfoError, match="schema_version 99"):
        load_runner(folder)


def test_a_broken_model_info_is_refused(folder: Path) -> None:
    (folder / "model_info.json").write_text("{")
    with pytest.raises(ModelInfoError, match="cannot be read as JSON"):
        load_runner(folder)


def test_an_export_for_another_device_is_refused(folder: Path) -> None:
    change_info(folder, device="cuda")
    with pytest.raises(ModelError, match="exported for device 'cuda'"):
        load_runner(folder)


def test_another_kind_of_kv_cache_is_refused(folder: Path) -> None:
    change_info(folder, kv_cache={**dataclasses.asdict(ModelInfo.load(folder).kv_cache), "dtype": "int8"})
    with pytest.raises(ModelError, match="of int8; this backend takes"):
        load_runner(folder)


def test_a_graph_that_is_not_the_described_one_is_refused(folder: Path) -> None:
    change_info(folder, inputs=[])
    with pytest.raises(ModelError, match="disagree on the inputs"):
        load_runner(folder)


def test_unknown_options_are_refused_with_the_nearest_known(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown option 'intra_op_spining'.*Did you mean 'intra_op_spinning'"):
        load_runner(folder, intra_op_spining=True)
    with pytest.raises(ConfigError, match="Known options: intra_op_spinning"):
        load_runner(folder, provider="cuda")
    with pytest.raises(ConfigError, match="must be True or False"):
        load_runner(folder, intra_op_spinning=1)


def test_spinning_can_be_switched_off(folder: Path) -> None:
    runner = load_runner(folder, intra_op_spinning=False)
    runner.allocate_kv_cache(2, 8)
    runner.close()


def test_errors_of_the_runtime_are_not_printed_beside_the_exception(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from paged_driver import PagedSequence, Work, pack

    runner = load_runner(folder)
    runner.allocate_kv_cache(2, 8)
    with pytest.raises(BackendError):
        runner.forward(pack([Work(PagedSequence([-999], [0]))], 8))
    runner.close()
    assert capfd.readouterr() == ("", "")


def test_telemetry_is_off_before_the_runtime_is_imported(folder: Path) -> None:
    script = """
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            print(os.environ.get("ORT_DISABLE_TELEMETRY"))
sys.meta_path.insert(0, Watch())
sys.path.append(sys.argv[2])
from pathlib import Path
from paged_driver import load_runner
assert "onnxruntime" not in sys.modules
load_runner(Path(sys.argv[1])).close()
"""
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    environment["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
    command = [sys.executable, "-c", script, str(folder), str(Path(__file__).parent)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.stderr == ""
    assert set(result.stdout.split()) == {"1"}
