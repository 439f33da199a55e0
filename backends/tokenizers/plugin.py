"""The tokenizer plugin `hf`: any folder with a tokenizer.json."""

import importlib.util
from collections.abc import Iterable

from nanovllm.plugins import ModelSource, Tokenizer, TokenizerPlugin, Verdict, hookimpl


def _can_load(source: ModelSource) -> Verdict:
    if source.folder is None:
        return Verdict(False, "there is no folder")
    if not (source.folder / "tokenizer.json").is_file():
        return Verdict(False, f"{source.folder} has no tokenizer.json")
    if importlib.util.find_spec("tokenizers") is None:
        return Verdict(False, "the package 'tokenizers' is not installed")
    return Verdict(True, "it has a tokenizer.json")


def _make(source: ModelSource) -> Tokenizer:
    from backends.tokenizers.hf import HFTokenizer

    return HFTokenizer.load(source)


@hookimpl
def nanovllm_tokenizers() -> Iterable[TokenizerPlugin]:
    return [TokenizerPlugin(name="hf", factory=_make, can_load=_can_load, priority=100)]
