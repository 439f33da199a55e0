"""The command line as a user runs it: a process of its own, on the mock backend."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanovllm import __version__

MOCK = ("--backend", "mock", "--model", "none")


def nanovllm(*arguments: str, **options: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "nanovllm", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=False,
        **options,
    )


def test_the_version_is_printed() -> None:
    assert nanovllm("--version").stdout == f"nanovllm {__version__}\n"


def test_the_console_script_is_the_same_program() -> None:
    script = Path(sys.executable).with_name("nanovllm")
    run = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert run.stdout == nanovllm("--version").stdout


def test_one_answer_is_printed_alone_and_several_under_their_prompts() -> None:
    alone = nanovllm("generate", *MOCK, "--max-tokens", "8", "hello")
    both = nanovllm("generate", *MOCK, "--max-tokens", "8", "hello", "there")
    assert alone.returncode == both.returncode == 0
    assert alone.stdout
    assert both.stdout.startswith(f"> hello\n{alone.stdout}> there\n")


def test_streaming_prints_the_same_text() -> None:
    whole = nanovllm("generate", *MOCK, "--max-tokens", "30", "hello", "there")
    streamed = nanovllm("generate", *MOCK, "--max-tokens", "30", "--stream", "hello", "there")
    assert streamed.stdout == whole.stdout


def test_a_prompt_can_come_from_stdin() -> None:
    assert nanovllm("generate", *MOCK, "-", input="hello").stdout == nanovllm("generate", *MOCK, "hello").stdout


def test_sampling_is_reproducible_by_seed() -> None:
    runs = [nanovllm("generate", *MOCK, "--temperature", "2", "--seed", seed, "hello").stdout for seed in "112"]
    assert runs[0] == runs[1] != runs[2]


def test_a_chat_answers_line_by_line_until_its_end(tmp_path: Path) -> None:
    template = '{"chat_template": "{% for m in messages %}{{ m.content }} {% endfor %}"}'
    (tmp_path / "tokenizer_config.json").write_text(template)
    run = nanovllm(
        *("chat", "--backend", "mock", "--model", str(tmp_path), "--tokenizer-backend", "simple-bpe"),
        *("--max-tokens", "5"),
        input="hello\n/clear\nhello\n/exit\nnever read\n",
    )
    assert run.returncode == 0, run.stderr
    first, second = run.stdout.rstrip("\n").split("\n")
    assert first == second, "after /clear the same question has the same answer"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--backend", "mokc"), r"no backend named 'mokc'.*mock"),
        ((*MOCK, "--temperature", "nan"), r"temperature is nan"),
        ((*MOCK, "--temperature", "-1"), r"temperature is -1"),
        ((*MOCK, "--max-tokens", "0"), r"max_tokens is 0"),
        ((*MOCK, "--backend-option", "chekc=1"), r"no option 'chekc'"),
        ((*MOCK, "--backend-option", "check"), r"KEY=VALUE"),
        ((*MOCK, "--max-model-len", "100", "--num-kv-blocks", "1"), r"needs 4"),
        (("--model", "no/such/folder"), r"no/such/folder"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(arguments: tuple[str, ...], message: str) -> None:
    run = nanovllm("generate", *arguments, "hello")
    assert run.returncode == 2
    assert re.search(message, run.stderr, re.DOTALL)
    assert "Traceback" not in run.stderr
    assert run.stdout == ""


def test_an_unknown_option_is_refused() -> None:
    run = nanovllm("generate", "--temprature", "1", "hello")
    assert run.returncode == 2
    assert "temprature" in run.stderr


def test_plugins_lists_what_is_installed() -> None:
    run = nanovllm("plugins")
    assert run.returncode == 0, run.stderr
    for name in ("mock", "onnxruntime", "hf", "simple-bpe"):
        assert re.search(rf"^  {name} ", run.stdout, re.MULTILINE), run.stdout


def test_plugins_names_a_broken_one_and_says_why(tmp_path: Path) -> None:
    info = tmp_path / "bad_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[nanovllm]\nbad = bad_plugin_module\n")
    (tmp_path / "bad_plugin_module.py").write_text("raise RuntimeError('out of order')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = nanovllm("plugins", env=environment)
    assert run.returncode == 2
    assert "bad of bad-plugin 1.0: RuntimeError: out of order" in run.stdout
    assert nanovllm("generate", *MOCK, "hello", env=environment).returncode == 0


def test_an_export_file_in_the_working_folder_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "export.py").write_text("raise SystemExit(77)\n")
    run = nanovllm("export", "--help", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "--model" in run.stdout


@pytest.fixture
def endless() -> Iterator["subprocess.Popen[str]"]:
    """A generation that streams for ever, once its first text has come."""
    arguments = ("--stream", "--ignore-eos", "--max-tokens", "4000", "hello")
    process = subprocess.Popen(
        [sys.executable, "-m", "nanovllm", "generate", *MOCK, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None
    assert process.stdout.read(1)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C cannot be sent to one process on Windows")
def test_ctrl_c_leaves_no_traceback(endless: "subprocess.Popen[str]") -> None:
    endless.send_signal(signal.SIGINT)
    _, errors = endless.communicate(timeout=20)
    assert endless.returncode == 130
    assert "Traceback" not in errors
    assert errors.endswith("interrupted\n")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGPIPE")
def test_a_reader_that_goes_away_ends_it_quietly(endless: "subprocess.Popen[str]") -> None:
    assert endless.stdout is not None
    endless.stdout.close()
    endless.wait(timeout=20)
    assert endless.stderr is not None
    assert "Traceback" not in endless.stderr.read()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("model", [MOCK, ("--model", "tiny-chat")], ids=["mock", "tiny-chat"])
def test_a_killed_process_leaves_nothing_behind(model: tuple[str, ...], tmp_path: Path) -> None:
    cache, temporary = tmp_path / "cache", tmp_path / "tmp"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary), "NANOVLLM_CACHE": str(cache)}
    arguments = ("--stream", "--ignore-eos", "--max-tokens", "1500", "hello")
    process = subprocess.Popen(
        [sys.executable, "-m", "nanovllm", "generate", *model, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.read(1), "it did not start to stream"
    assert process.poll() is None, "it was to be killed in mid-run"
    shared_memory = set(Path("/dev/shm").iterdir())
    process.kill()
    process.communicate()
    time.sleep(0.1)
    left = [stat for stat in Path("/proc").glob("[0-9]*/stat") if _session(stat) == process.pid]
    assert left == [], "a child outlived it"
    assert set(Path("/dev/shm").iterdir()) <= shared_memory
    assert list(temporary.iterdir()) == []
    exports = list((cache / "exports").iterdir()) if cache.exists() else []
    assert all((export / "model_info.json").is_file() for export in exports), "a broken export stayed in the cache"


def _session(stat: Path) -> int | None:
    """Session id of a process: the fourth field after the name in /proc/PID/stat (proc(5))."""
    try:
        return int(stat.read_text().rpartition(")")[2].split()[3])
    except (OSError, ValueError):
        return None
