"""The kernel library, made of the sources as they are: the installed one where it is newer than they, else compiled."""

import ctypes
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.ort.kernels import build

INSTRUCTION_SETS = ("scalar", "avx2", "avx512")


@pytest.fixture(autouse=True)
def _whatever_the_caller_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests here say themselves what they use, so that a run with NANOVLLM_KERNELS=0 would be the same run again."""
    monkeypatch.delenv("NANOVLLM_KERNELS", raising=False)


@pytest.fixture(scope="session")
def compiler() -> list[str]:
    command = build.find_compiler()
    if command is None:
        pytest.skip("there is no C++ compiler, so there are no kernels to test")
    return command


@pytest.fixture(scope="session")
def kernel_library(compiler: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    installed = build.FOLDER / build.LIBRARY_NAME
    made_of = [path for path in build.FOLDER.iterdir() if path.suffix in (".cpp", ".h", ".inc") or path.stem == "build"]
    if installed.exists() and installed.stat().st_mtime > max(path.stat().st_mtime for path in made_of):
        return installed
    path = tmp_path_factory.mktemp("kernels") / build.LIBRARY_NAME
    build.compile_library(compiler, path)
    return path


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request: pytest.FixtureRequest, kernel_library: Path) -> Iterator[str]:
    """Every set that this processor has, one after the other."""
    library = ctypes.CDLL(str(kernel_library))
    library.nanovllm_instruction_set.restype = ctypes.c_char_p
    before = library.nanovllm_instruction_set().decode()
    if not library.nanovllm_force_instruction_set(INSTRUCTION_SETS.index(request.param)):
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    library.nanovllm_force_instruction_set(INSTRUCTION_SETS.index(before))
