"""The kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer."""

import os
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from backends.ort.kernels import build

NUM_CALLS = {"attention": {"address,undefined": 30, "thread": 9}}
USUAL_NUM_CALLS = {"address,undefined": 60, "thread": 15}
KERNELS = sorted(path.name.removesuffix("_driver.cpp") for path in Path(__file__).parent.glob("*_driver.cpp"))


@pytest.fixture(scope="module")
def driver(compiler: list[str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The program that calls any kernel, compiled for some sanitizers when a test first asks for it."""
    probe = tmp_path_factory.mktemp("probe") / "probe.cpp"
    probe.write_text("int main() { return 0; }\n")
    of_onnxruntime = [build.FOLDER / "library.cpp", *build.FOLDER.glob("*_op.cpp")]

    @cache
    def compiled(sanitizers: str) -> Path:
        flags = ["-O1", "-g1", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
        try:
            build.compile_program(compiler, [probe], probe.with_suffix(""), flags)
        except build.BuildError as error:
            pytest.skip(f"this compiler has no -fsanitize={sanitizers}: {error}")
        path = tmp_path_factory.mktemp("driver") / "driver"
        files = {*Path(__file__).parent.glob("*.cpp"), *build.sources()} - {*of_onnxruntime}
        build.compile_program(compiler, sorted(files), path, flags)
        return path

    return compiled


@pytest.mark.parametrize("sanitizers", USUAL_NUM_CALLS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_kernel_runs_clean(driver: Callable[[str], Path], kernel: str, sanitizers: str) -> None:
    count = NUM_CALLS.get(kernel, USUAL_NUM_CALLS)[sanitizers]
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}  # leaks cannot be looked for under a tracer
    command = [driver(sanitizers), kernel, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"set 0: {count} calls" in done.stdout
