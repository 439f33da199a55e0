"""Frontend: what `LLM` and `AsyncLLM` have in common around one engine: chat templates, defaults, request ids.

Knows nothing about threads, steps and outputs.
"""

import itertools
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from typing import Any

from nanovllm.chat_template import ChatTemplate, Message
from nanovllm.config import EngineConfig
from nanovllm.engine.build import build_engine
from nanovllm.engine.request import Request
from nanovllm.errors import ChatTemplateError
from nanovllm.plugins.manager import PluginManager
from nanovllm.prompts import Prompt
from nanovllm.sampling_params import SamplingParams

__all__ = ["Frontend"]


class Frontend:
    """A loaded model. engine: whose steps the owner of this object makes, from one thread."""

    def __init__(self, config: EngineConfig, plugins: PluginManager | None = None) -> None:
        loaded = build_engine(config, plugins)
        self.engine = loaded.engine
        self._chat_template = None if loaded.folder is None else ChatTemplate.load(loaded.folder)
        self._default_params = _default_params(self.engine.model_info.generation_defaults, config)
        self._request_ids = itertools.count()

    @property
    def has_chat_template(self) -> bool:
        return self._chat_template is not None

    @property
    def chat_template(self) -> str | None:
        """The model's chat template, as Jinja text; None where it has none."""
        return None if self._chat_template is None else self._chat_template.source

    def default_sampling_params(self) -> SamplingParams:
        """What a request without parameters gets: the model's own, from generation_config.json, or the defaults."""
        return self._default_params

    def new_request_id(self) -> str:
        return str(next(self._request_ids))

    def prepare(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        add_special_tokens: bool = True,
    ) -> Request:
        """A request ready to be added to the engine; any thread may. Raises `RequestError`."""
        return self.engine.prepare(
            self.new_request_id() if request_id is None else request_id,
            prompt.content,
            self._default_params if params is None else params,
            priority=priority,
            cache_salt=prompt.cache_salt,
            add_special_tokens=add_special_tokens,
        )

    def render_chat(
        self,
        messages: Seq[Message],
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        tools: Seq[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt text of a conversation, by the model's template or by `chat_template` (Jinja)."""
        template = self._chat_template
        if chat_template is not None:
            template = ChatTemplate(chat_template, template.special_tokens if template else None)
        if template is None:
            raise ChatTemplateError("this model has no chat template. Use generate(), or pass chat_template.")
        variables = dict(chat_template_kwargs or {})
        for name in ("messages", "tools", "add_generation_prompt"):
            if name in variables:
                raise ChatTemplateError(f"chat_template_kwargs holds {name!r}; pass it as an argument of its own.")
        return template.render(messages, add_generation_prompt=add_generation_prompt, tools=tools, **variables)


_GENERATION_KEYS = {
    **{name: name for name in ("repetition_penalty", "temperature", "top_k", "top_p", "min_p")},
    "max_new_tokens": "max_tokens",
}
"""Of generation_config.json, those that vLLM takes, and what SamplingParams calls them."""


def _default_params(generation_defaults: Mapping[str, Any], config: EngineConfig) -> SamplingParams:
    """Raises `SamplingParamsError` where the model's file holds a value that is out of range."""
    if config.generation_config == "none":
        return SamplingParams()
    return SamplingParams(
        **{name: generation_defaults[key] for key, name in _GENERATION_KEYS.items() if key in generation_defaults}
    )
