"""benchmarks/compare.py with engines that compute nothing: turns, medians, ratios, and engines that misbehave."""

import re
import time
from pathlib import Path

import pytest

from benchmarks.compare import main
from benchmarks.engine_process import EngineFailure, EngineProcess, Round
from benchmarks.results import Measurement, best_peer, markdown_table, put_section
from nanovllm.bench import named_workload

ADAPTERS = Path(__file__).with_name("adapters")


def compare(folder: Path, *arguments: str) -> int:
    """Runs the program with fake engines that note their rounds in folder/journal."""
    journals = [f"--option={adapter}.journal={folder / 'journal'}" for adapter in ("fake", "nanovllm")]
    return main([*arguments, *journals, f"--adapters={ADAPTERS}", "--workload", "single", "--timeout=60"])


def journal(folder: Path) -> list[list[str]]:
    return [line.split() for line in (folder / "journal").read_text().splitlines()]


def test_rounds_alternate_and_each_is_the_same_for_all(tmp_path: Path) -> None:
    engines = ("--engine", "nanovllm:int8=ours", "fake:a=first", "fake:b=second")
    assert compare(tmp_path, *engines, "--rounds=3", "--warmups=1") == 0
    rows = journal(tmp_path)
    assert [name for name, *_ in rows] == ["ours", "first", "second"] * 4
    first_tokens = [row[1] for row in rows]
    assert len({*first_tokens}) == 4, "every round has prompts of its own"
    assert first_tokens == [token for token in first_tokens[::3] for _ in range(3)]


def test_an_engine_that_spins_is_stopped_while_another_is_measured(tmp_path: Path) -> None:
    options = ("--option=fake:spinner.spin=1", "--option=fake:sleeper.delay_s=1")
    engines = ("--engine", "fake:spinner=spinner", "fake:sleeper=sleeper")
    assert compare(tmp_path, *engines, *options, "--rounds=1", "--warmups=1") == 0
    (_, _, _, end), (_, _, begin, _) = [row for row in journal(tmp_path) if row[0] == "spinner"]
    assert float(begin) - float(end) < 0.3, "processor seconds while the other one slept for a second"


def test_the_section_has_the_command_versions_and_a_ratio(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "RESULTS.md"
    path.write_text("# Results\n\nAn introduction.\n")
    options = ("--option=fake.delay_s=0.4", "--option=nanovllm.delay_s=0.2")
    engines = ("--engine", "nanovllm:int8=ours", "fake:a=peer")
    assert compare(tmp_path, *engines, *options, "--rounds=1", "--warmups=0", "--write", str(path), "--title=Turn") == 0
    text = path.read_text()
    assert text.startswith("# Results\n\nAn introduction.\n\n## Turn (")
    assert "    python -m benchmarks.compare --engine nanovllm:int8=ours fake:a=peer" in text
    cells = {line.split(" | ")[0]: line.split(" | ") for line in text.splitlines() if line.startswith("| ")}
    assert cells["| fake:a"][1] == "Fake 1.0"
    assert cells["| fake:a"][4] == "1.00"
    median, ratio = (float(cells["| nanovllm:int8"][i].replace(",", "")) for i in (2, 4))
    assert ratio == pytest.approx(median / float(cells["| fake:a"][2].replace(",", "")), abs=0.01)
    assert ratio > 1
    assert text.split("## ")[1].split("\n", 1)[1].strip() in capfd.readouterr().out


@pytest.mark.parametrize(
    ("option", "reason"), [("fail=out of order", "RuntimeError: out of order"), ("short=1", r"returned \[255\]")]
)
def test_an_engine_that_fails_is_named_and_the_others_go_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], option: str, reason: str
) -> None:
    engines = ("--engine", "fake:bad=bad", "fake:good=good", f"--option=fake:bad.{option}")
    assert compare(tmp_path, *engines, "--rounds=2", "--warmups=0") == 1
    out = capfd.readouterr().out
    assert re.search(rf"fake:bad is missing: .*{reason}", out)
    assert "| fake:good |" in out
    assert [row[0] for row in journal(tmp_path) if row[0] == "good"] == ["good"] * 2


def test_our_own_adapter_runs_our_engine_with_options(capfd: pytest.CaptureFixture[str]) -> None:
    engine = ("--engine", "nanovllm=none", '--option=nanovllm.engine={"backend": "mock", "max_num_seqs": 4}')
    assert main([*engine, "--workload", "single", "--vocab-size=100", "--rounds=1"]) == 0
    assert "| nanovllm | nanovllm " in capfd.readouterr().out


@pytest.mark.parametrize("engine", ["fake", "nosuch=model", "fake:a="])
def test_an_engine_that_is_not_one_is_refused_with_the_known_ones(tmp_path: Path, engine: str) -> None:
    with pytest.raises(SystemExit, match=r"ADAPTER\[:LABEL\]=MODEL.*fake, nanovllm"):
        compare(tmp_path, "--engine", engine)


def test_an_option_that_an_engine_has_not_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert compare(tmp_path, "--engine", "fake=model", "--option=fake.dleay_s=1") == 1
    assert "unknown option 'dleay_s'" in capfd.readouterr().out


def test_nothing_of_an_engine_is_left_when_it_is_closed(tmp_path: Path) -> None:
    command = (
        "bash",
        "-c",
        'sleep 600 & echo $! >&2; echo "{\\"engine\\": \\"e\\", \\"version\\": \\"1\\", \\"load_s\\": 0}"; cat',
    )
    with EngineProcess(command, tmp_path / "log", timeout_s=10):
        child = Path("/proc", (tmp_path / "log").read_text().strip())
        assert child.exists()
    deadline = time.monotonic() + 10
    while child.exists() and " Z " not in (child / "stat").read_text():  # a zombie is what nobody has waited for
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_engine_that_ends_at_once_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(EngineFailure, match=r"ended; the last line that it printed: sorry"):
        EngineProcess(("bash", "-c", "echo sorry >&2"), tmp_path / "log", timeout_s=10)


def test_an_engine_that_takes_too_long_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(EngineFailure, match=r"did not answer in 0.1 s"):
        EngineProcess(("cat",), tmp_path / "log", timeout_s=0.1)


def measurement(name: str, *seconds: float, ours: bool = False, workload: str = "single") -> Measurement:
    return Measurement(name, "E 1", ours, named_workload(workload, 1000), [Round(s, 2**30) for s in seconds])


def test_the_median_of_the_rates_counts_and_ratios_are_to_the_best_peer() -> None:
    ours, slow, fast = measurement("ours", 2, 1, 64, ours=True), measurement("slow", 16), measurement("fast", 4)
    assert ours.median == 128, "256 tokens in 2 s"
    assert best_peer([ours, slow, fast]) is fast
    rows = [line for line in markdown_table([slow, ours, fast]).splitlines() if "| E 1 |" in line]
    assert rows == [
        "| ours | E 1 | 128.0 | 4.0 - 256.0 | 2.00 | 1.0 GiB |",
        "| fast | E 1 | 64.0 | 64.0 - 64.0 | 1.00 | 1.0 GiB |",
        "| slow | E 1 | 16.0 | 16.0 - 16.0 | 0.25 | 1.0 GiB |",
    ]


def test_without_a_peer_there_is_no_ratio() -> None:
    assert "| - |" in markdown_table([measurement("ours", 1, ours=True)])


def test_a_prefill_is_measured_by_its_prompts() -> None:
    table = markdown_table([measurement("ours", 2, ours=True, workload="prefill")])
    assert "prompt tok/s" in table
    assert "| 4,096.0 |" in table


def test_a_section_takes_the_place_of_that_of_the_same_heading(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    for heading, body in (("A", "1"), ("B", "2"), ("A", "3\n\n### deeper\n")):
        put_section(path, heading, body)
    assert path.read_text() == "## A\n\n3\n\n### deeper\n\n## B\n\n2\n"
    put_section(path, "C", "4")
    assert path.read_text().endswith("## B\n\n2\n\n## C\n\n4\n")
