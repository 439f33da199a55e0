"""Compiles the kernel library: C++ sources of this folder in, one shared library or executable out.

Used by the package's build and by tests. Imports the standard library only, since a build has nothing else, and knows
neither ONNX Runtime nor the rest of the package.
"""

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

__all__ = ["FOLDER", "LIBRARY_NAME", "BuildError", "compile_library", "compile_program", "find_compiler", "sources"]

LIBRARY_NAME = "libnanovllm_kernels.so"
FOLDER = Path(__file__).parent

_FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-pthread", "-Wall", "-Wextra"),
    "-ffp-contract=off",  # results must not depend on which products the compiler fuses with sums
    *("-Wno-psabi", "-Wno-maybe-uninitialized"),  # no vector crosses the library's border; GCC 12's own headers
)
_AVX512 = ("-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
_INSTRUCTION_SETS = {  # by the end of a source's name; only what is behind a run-time check may be in such a file
    "_avx2": ("-mavx2", "-mfma"),
    "_avx512": _AVX512,
    "_avx512vnni": (*_AVX512, "-mavx512vnni"),
}


class BuildError(Exception):
    """The compiler failed; the message is its own."""


def find_compiler() -> list[str] | None:
    """The C++ compiler's command: what CXX says, else the first of c++, g++ and clang++; None where there is none."""
    candidates = [shlex.split(os.environ["CXX"])] if os.environ.get("CXX") else [["c++"], ["g++"], ["clang++"]]
    return next((command for command in candidates if shutil.which(command[0])), None)


def sources() -> list[Path]:
    """The library's sources."""
    return sorted(FOLDER.glob("*.cpp"))


def compile_library(compiler: Sequence[str], output: Path) -> None:
    """Writes the shared library to `output`. Raises `BuildError`."""
    _build(compiler, sources(), output, (), ("-shared",))


def compile_program(compiler: Sequence[str], files: Iterable[Path], output: Path, flags: Sequence[str]) -> None:
    """Writes an executable made of some sources, with further flags such as -fsanitize=address. Raises `BuildError`."""
    _build(compiler, files, output, (f"-I{FOLDER}", *flags), ())


def _build(
    compiler: Sequence[str], files: Iterable[Path], output: Path, flags: Sequence[str], link_flags: Sequence[str]
) -> None:
    with TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        jobs = [(source, Path(folder, f"{source.stem}.o")) for source in files]
        list(pool.map(lambda job: _compile(compiler, job[0], job[1], flags), jobs))
        objects = [str(target) for _, target in jobs]
        partial = output.with_suffix(".partial")  # a process that has the old library mapped keeps it
        _run([*compiler, *_FLAGS, *flags, *link_flags, *objects, "-o", str(partial)])
        partial.replace(output)


def _compile(compiler: Sequence[str], source: Path, target: Path, flags: Sequence[str]) -> None:
    instructions = next((flags for end, flags in _INSTRUCTION_SETS.items() if source.stem.endswith(end)), ())
    if os.uname().machine not in ("x86_64", "amd64"):
        instructions = ()
    _run([*compiler, *_FLAGS, *instructions, *flags, "-c", str(source), "-o", str(target)])


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"{shlex.join(command)} failed:\n{done.stderr.strip()}")
