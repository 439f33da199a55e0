"""`python -m export`: its table, its messages and its exit codes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from export.cli import main
from nanovllm.model_info import ModelInfo
from nanovllm.testing import tiny_config, write_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "some-model")


def test_it_exports_and_closes_with_a_table(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = checkpoint.parent / "out"
    arguments = ["--model", str(checkpoint), "--output", str(output), "--max-length", "64", "--block-size", "16"]
    assert main([*arguments, "--no-progress"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    for part in ("some-model (qwen2)", "Parameters", "fp32", "MiB", str(output)):
        assert part in captured.out
    info = ModelInfo.load(output)
    assert (info.max_model_len, info.kv_cache.block_size) == (64, 16)


def test_progress_goes_to_stderr_in_bytes(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", str(checkpoint), "--output", str(checkpoint.parent / "out")]) == 0
    captured = capsys.readouterr()
    assert "Exporting: 100%" in captured.err
    assert "B/s" in captured.err
    assert "Exporting" not in captured.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "/no/such/folder"], "neither an existing folder nor a hub id"),
        (["--model", "{checkpoint}", "--precision", "int5"], "this version exports fp32, fp16"),
        (["--model", "{checkpoint}", "--max-length", "100000"], "at most 256 tokens"),
        (["--model", "{checkpoint}", "--output", "{checkpoint}"], "is no exported model"),
    ],
)
def test_a_users_mistake_is_one_line_and_code_2(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    filled = [argument.format(checkpoint=checkpoint) for argument in arguments]
    assert main([*filled, "--no-progress"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert said in captured.err
    assert captured.err.count("\n") == 1


def test_an_existing_output_asks_for_force(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", str(checkpoint), "--output", str(checkpoint.parent / "out"), "--no-progress"]
    assert main(arguments) == 0
    assert main(arguments) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*arguments, "--force"]) == 0


def test_it_runs_as_a_module_and_from_any_folder(checkpoint: Path) -> None:
    command = [sys.executable, "-m", "export", "--model", "some-model", "--no-progress"]
    result = subprocess.run(command, cwd=checkpoint.parent, capture_output=True, text=True, check=False, env=path())
    assert (result.returncode, result.stderr) == (0, "")
    assert (checkpoint.parent / "models" / "some-model-onnx" / "model.onnx").is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_leaves_nothing_and_says_so(tmp_path: Path) -> None:
    checkpoint = write_checkpoint_of_zeros(tmp_path / "some-model", num_tokens=8_000_000)
    command = [sys.executable, "-m", "export", "--model", str(checkpoint), "--output", "out", "--no-progress"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=path())
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.*/model.onnx.data")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "interrupted; nothing was written.\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["some-model"]


def write_checkpoint_of_zeros(folder: Path, num_tokens: int) -> Path:
    """A checkpoint whose table of embeddings is so large that its export takes a while; on disk it is a hole."""
    write_checkpoint(folder, tiny_config(vocab_size=8))
    file = folder / "model.safetensors"
    size = int.from_bytes(file.read_bytes()[:8], "little")
    header = json.loads(file.read_bytes()[8 : 8 + size])
    begin = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    end = begin + num_tokens * 48 * 2
    header["model.embed_tokens.weight"] |= {"shape": [num_tokens, 48], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + end)
    (folder / "config.json").write_text(json.dumps(tiny_config(vocab_size=num_tokens)))
    return folder


def path() -> dict[str, str]:
    """The environment with the modules that this process sees."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
