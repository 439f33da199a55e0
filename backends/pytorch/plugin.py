"""The plugin "torch": runs checkpoint folders as they are, on PyTorch.

Importing this module does not load torch; the factory does.
"""

import json
from collections.abc import Iterable
from functools import partial
from importlib.util import find_spec

from backends.pytorch.cuda_presence import may_run_on_cuda
from nanovllm.architectures import SUPPORTED_MODEL_TYPES
from nanovllm.checkpoint import CONFIG_FILE, weight_files
from nanovllm.config import EngineConfig
from nanovllm.errors import CheckpointError, ModelError
from nanovllm.plugins import ModelRunner, ModelRunnerPlugin, ModelSource, Verdict, hookimpl

__all__ = ["nanovllm_model_runners"]

_PRIORITY = 5
"""Below onnxruntime's 10, whose kernels are the quicker ones on a CPU. On CUDA, too, as long as this backend has not
run there: nobody gets it unasked."""


@hookimpl
def nanovllm_model_runners() -> Iterable[ModelRunnerPlugin]:
    return [
        ModelRunnerPlugin(
            name="torch",
            factory=_make_runner,
            can_load=_can_load,
            priority=_PRIORITY,
            devices=("cpu", "cuda"),
            tensor_parallel=True,
            status=_torch_in_words,
        )
    ]


def _torch_in_words() -> str:
    found = "torch is installed"
    return _missing() or (f"{found}; with an NVIDIA driver, so that it runs on CUDA" if may_run_on_cuda() else found)


def _missing() -> str | None:
    return None if find_spec("torch") else "torch is not installed: pip install 'nanovllm[torch]'"


def _can_load(source: ModelSource) -> Verdict:
    folder = source.folder
    if folder is None:
        return Verdict(False, "it needs a model folder")
    if missing := _missing():
        return Verdict(False, missing)
    path = folder / CONFIG_FILE
    if not path.is_file():
        return Verdict(False, f"{CONFIG_FILE} is not in {folder}")
    try:
        model_type = json.loads(path.read_text(encoding="utf-8")).get("model_type")
        weight_files(folder)
    except CheckpointError as error:
        return Verdict(False, str(error))
    except (OSError, ValueError, AttributeError) as error:
        return Verdict(False, f"{path} cannot be read: {error}")
    if model_type not in SUPPORTED_MODEL_TYPES:
        supported = ", ".join(SUPPORTED_MODEL_TYPES)
        return Verdict(False, f"model_type {model_type!r} has no architecture file; supported: {supported}")
    return Verdict(True, f"a {model_type} checkpoint")


def _make_runner(source: ModelSource, config: EngineConfig) -> ModelRunner:
    if source.folder is None:
        raise ModelError(f"backend 'torch' needs a model folder; {source.name!r} is none.")
    if missing := _missing():
        raise ModelError(f"backend 'torch' cannot run: {missing}.")
    from backends.pytorch.load import load_runner
    from backends.pytorch.options import TorchOptions
    from backends.pytorch.parallel.start import load_parallel_runner
    from backends.pytorch.step_limits import StepLimits
    from nanovllm.checkpoint import Checkpoint
    from nanovllm.resources import num_physical_cores

    size = config.tensor_parallel_size
    return (load_runner if size == 1 else partial(load_parallel_runner, size=size))(
        Checkpoint(source.folder),
        name=source.folder.resolve().name,
        options=TorchOptions.from_options(config.backend_options),
        num_threads=config.num_threads or num_physical_cores(),
        limits=StepLimits.of(config),
        max_model_len=config.max_model_len,
    )
