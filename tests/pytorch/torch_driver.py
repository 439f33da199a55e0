"""Runners of the torch backend for tests."""

from pathlib import Path

from backends.pytorch.plugin import nanovllm_model_runners
from nanovllm.config import EngineConfig
from nanovllm.plugins import LogitsModelRunner, ModelSource

__all__ = ["load_runner"]


def load_runner(folder: Path, *, max_model_len: int | None = None, **options: object) -> LogitsModelRunner:
    """The runner that the plugin makes for `folder`, float32 and on the CPU unless the options say otherwise."""
    (plugin,) = nanovllm_model_runners()
    options = {"dtype": "float32", "device": "cpu", **options}
    config = EngineConfig(model=str(folder), num_threads=1, max_model_len=max_model_len, backend_options=options)
    runner = plugin.factory(ModelSource(str(folder), folder), config)
    assert isinstance(runner, LogitsModelRunner)
    return runner
