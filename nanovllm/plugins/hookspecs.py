"""The hooks that a plugin may implement. A plugin is a module named in the entry-point group "nanovllm"."""

from collections.abc import Iterable

import pluggy

from nanovllm.plugins.records import ModelRunnerPlugin, TokenizerPlugin

__all__ = ["PROJECT", "hookimpl", "hookspec"]

PROJECT = "nanovllm"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def nanovllm_model_runners() -> Iterable[ModelRunnerPlugin]:  # type: ignore[empty-body]
    """The backends of this plugin."""


@hookspec
def nanovllm_tokenizers() -> Iterable[TokenizerPlugin]:  # type: ignore[empty-body]
    """The tokenizers of this plugin."""
