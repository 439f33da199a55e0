"""Build hook: compiles the kernel library where a C++ compiler is found, and leaves a pure Python wheel otherwise.

NANOVLLM_BUILD_KERNELS=0 leaves it out, =1 makes a failure fatal; CXX names the compiler. An editable install gets the
library beside the sources. `nanovllm plugins` says later whether the library is there; pip hides what is said here.
"""

import importlib.util
import os
import shutil
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = "backends/ort/kernels"


class KernelBuildHook(BuildHookInterface):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        build = _load_build(Path(self.root, KERNELS))
        beside = Path(self.root, KERNELS, build.LIBRARY_NAME)
        self._scratch = Path(tempfile.mkdtemp())
        library = self._scratch / build.LIBRARY_NAME
        if not self._compile(build, library):
            if version == "editable":
                beside.unlink(missing_ok=True)  # else one of older sources would stay in use
        elif version == "editable":
            shutil.copy2(library, beside.with_suffix(".partial"))
            beside.with_suffix(".partial").replace(beside)
        else:
            build_data["force_include"][str(library)] = f"{KERNELS}/{build.LIBRARY_NAME}"
            build_data["pure_python"] = False
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{platform}"  # the library does not know Python

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self.target_name == "wheel":
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _compile(self, build: ModuleType, library: Path) -> bool:
        wanted = os.environ.get("NANOVLLM_BUILD_KERNELS", "")
        if wanted == "0":
            self.app.display_warning("The kernel library is left out: NANOVLLM_BUILD_KERNELS=0.")
            return False
        compiler = build.find_compiler()
        try:
            if compiler is None:
                raise build.BuildError("no C++ compiler was found; install g++ or clang++, or name one in CXX")
            build.compile_library(compiler, library)
        except build.BuildError as error:
            if wanted == "1":
                raise
            self.app.display_warning(f"The kernel library is left out, everything runs without it, slower: {error}")
            return False
        self.app.display_info(f"The kernel library was compiled by {' '.join(compiler)}.")
        return True


def _load_build(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("nanovllm_kernel_build", folder / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
