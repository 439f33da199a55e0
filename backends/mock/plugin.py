"""The mock backend and its tokenizer, for tests and for trying the engine without a model."""

from collections.abc import Iterable

from nanovllm.config import EngineConfig
from nanovllm.errors import ConfigError
from nanovllm.plugins import ModelRunner, ModelRunnerPlugin, ModelSource, Tokenizer, TokenizerPlugin, Verdict, hookimpl

_BY_NAME_ONLY = Verdict(False, "it is used only where it is named")


def _make_runner(source: ModelSource, config: EngineConfig) -> ModelRunner:
    from backends.mock.late_runner import LateMockRunner
    from backends.mock.runner import MockRunner

    overlap = config.backend_options.get("overlap", False)
    if not isinstance(overlap, bool):
        raise ConfigError(f"the mock backend's option overlap is {overlap!r}; it must be True or False.")
    return (LateMockRunner if overlap else MockRunner).from_config(source, config)


def _make_tokenizer(source: ModelSource) -> Tokenizer:
    from backends.mock.simple_bpe import SimpleBPE

    return SimpleBPE()


@hookimpl
def nanovllm_model_runners() -> Iterable[ModelRunnerPlugin]:
    return [
        ModelRunnerPlugin(
            name="mock",
            factory=_make_runner,
            can_load=lambda source: _BY_NAME_ONLY,
            priority=-100,
            needs_folder=False,
            tokenizer="simple-bpe",
        )
    ]


@hookimpl
def nanovllm_tokenizers() -> Iterable[TokenizerPlugin]:
    return [
        TokenizerPlugin(
            name="simple-bpe", factory=_make_tokenizer, can_load=lambda source: _BY_NAME_ONLY, priority=-100
        )
    ]
