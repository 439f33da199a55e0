"""What a user may give as prompts, in one form.

In: texts, token ids or mappings of vLLM's kind. Out: `Prompt` records. Tokenizes nothing.
"""

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from nanovllm.errors import PromptError

__all__ = ["Prompt", "PromptInput", "read_prompt", "read_prompts"]

PromptInput = str | Seq[int] | Mapping[str, Any]
"""A text; token ids; or a mapping with "prompt" (a text) or "prompt_token_ids", and perhaps "cache_salt"."""

_KEYS = ("prompt", "prompt_token_ids", "cache_salt")


@dataclass(frozen=True, slots=True)
class Prompt:
    """content: a text or token ids. cache_salt: only requests of the same salt share prefix-cache blocks."""

    content: str | Seq[int]
    cache_salt: str = ""


def read_prompts(prompts: PromptInput | Seq[PromptInput]) -> list[Prompt]:
    """A list of prompts, also where one prompt was given. Raises `PromptError`."""
    if isinstance(prompts, str | Mapping):
        return [read_prompt(prompts)]
    if not isinstance(prompts, Seq) or isinstance(prompts, bytes):
        raise PromptError(f"prompts is {prompts!r}; it must be a text, a list of token ids, or a list of them.")
    if prompts and all(isinstance(item, int | np.integer) for item in prompts):
        return [read_prompt(cast(Seq[int], prompts))]
    return [read_prompt(cast(PromptInput, prompt)) for prompt in prompts]


def read_prompt(prompt: PromptInput) -> Prompt:
    """Raises `PromptError` for what is no prompt."""
    if not isinstance(prompt, Mapping):
        if not isinstance(prompt, Seq) or isinstance(prompt, bytes):
            raise PromptError(f"a prompt is {prompt!r}; it must be a text or a list of token ids.")
        return Prompt(prompt)
    unknown = [key for key in prompt if key not in _KEYS]
    if unknown:
        raise PromptError(f"a prompt has the key {unknown[0]!r}; a mapping may have {', '.join(_KEYS)}.")
    contents = [prompt[key] for key in _KEYS[:2] if prompt.get(key) is not None]
    if len(contents) != 1 or isinstance(contents[0], Mapping):
        raise PromptError(f"a prompt is {prompt!r}; it must have either 'prompt' (a text) or 'prompt_token_ids'.")
    salt = prompt.get("cache_salt") or ""
    if not isinstance(salt, str):
        raise PromptError(f"cache_salt is {salt!r}; it must be a string.")
    return Prompt(read_prompt(contents[0]).content, salt)
