"""The attention kernel under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer."""

import os
import subprocess
from pathlib import Path

import pytest

from backends.ort.kernels import build

INSTRUCTIONS = ("scalar", "avx2", "avx512", "avx512vnni")
SOURCES = ("attention", "attention_write", *(f"attention_{name}" for name in INSTRUCTIONS), "instruction_set")


@pytest.mark.parametrize(("sanitizers", "num_steps"), [("address,undefined", 30), ("thread", 9)])
def test_the_kernel_runs_clean(compiler: list[str], tmp_path: Path, sanitizers: str, num_steps: int) -> None:
    flags = ["-O1", "-g", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    probe = tmp_path / "probe.cpp"
    probe.write_text("int main() { return 0; }\n")
    try:
        build.compile_program(compiler, [probe], tmp_path / "probe", flags)
    except build.BuildError as error:
        pytest.skip(f"this compiler has no -fsanitize={sanitizers}: {error}")
    files = [Path(__file__).parent / "attention_driver.cpp", *(build.FOLDER / f"{name}.cpp" for name in SOURCES)]
    build.compile_program(compiler, files, tmp_path / "driver", flags)
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}  # leaks cannot be looked for under a tracer
    done = subprocess.run(
        [tmp_path / "driver", str(num_steps)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"set 0: {num_steps} steps" in done.stdout
