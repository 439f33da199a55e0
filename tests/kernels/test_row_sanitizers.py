"""The row kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer."""

import os
import subprocess
from pathlib import Path

import pytest

from backends.ort.kernels import build

GATED_SILU = ("gated_silu", "gated_silu_scalar", "gated_silu_avx2", "gated_silu_avx512", "instruction_set")
ROWS = ("row_source", "row_product", "row_product_avx2", "row_product_vnni", *GATED_SILU)
BLOCKS = ("block_product", "block_product_avx2", "block_product_vnni")
SOURCES = {
    "sampler": ("sampler", "row_nucleus", "row_weights", "instruction_set"),
    "quantized_linear": ("quantized_linear", *ROWS),
    "block_linear": ("block_linear", *BLOCKS, *ROWS),
    "greedy_head": ("greedy_head", "greedy_product", "greedy_sketch", "quantized_linear", *BLOCKS, *ROWS),
    "gated_silu": GATED_SILU,
}


@pytest.mark.parametrize(("sanitizers", "count"), [("address,undefined", 60), ("thread", 15)])
@pytest.mark.parametrize("kernel", SOURCES)
def test_the_kernel_runs_clean(compiler: list[str], tmp_path: Path, kernel: str, sanitizers: str, count: int) -> None:
    flags = ["-O1", "-g", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    probe = tmp_path / "probe.cpp"
    probe.write_text("int main() { return 0; }\n")
    try:
        build.compile_program(compiler, [probe], tmp_path / "probe", flags)
    except build.BuildError as error:
        pytest.skip(f"this compiler has no -fsanitize={sanitizers}: {error}")
    driver = Path(__file__).parent / f"{kernel}_driver.cpp"
    files = [driver, *(build.FOLDER / f"{name}.cpp" for name in SOURCES[kernel])]
    build.compile_program(compiler, files, tmp_path / "driver", flags)
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}  # leaks cannot be looked for under a tracer
    done = subprocess.run(
        [tmp_path / "driver", str(count)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"set 0: {count} " in done.stdout
