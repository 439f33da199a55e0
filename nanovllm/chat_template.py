"""Chat templates: messages in, the prompt text of a model out.

Templates are Jinja, as Hugging Face's tokenizers carry them (format: transformers' documentation, "Chat templates"):
in `chat_template.jinja` or under "chat_template" in tokenizer_config.json (a string, or a list of {name, template}).
They come with the model, so they run in jinja2's immutable sandbox. Knows nothing about token ids.
"""

import json
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from nanovllm.errors import ChatTemplateError

__all__ = ["ChatTemplate", "Message"]

Message = Mapping[str, Any]

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ChatTemplate:
    """One template, compiled when first used. special_tokens: the texts that it may refer to, such as "eos_token"."""

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        self.source = source
        self.special_tokens = dict(special_tokens or {})

    @classmethod
    def load(cls, folder: Path) -> "ChatTemplate | None":
        """The folder's default template; None where it has none. Raises `ChatTemplateError` for an unreadable one."""
        config = _read_json(folder / "tokenizer_config.json")
        file = folder / "chat_template.jinja"
        try:
            source = file.read_text(encoding="utf-8") if file.is_file() else config.get("chat_template")
        except (OSError, ValueError) as error:
            raise ChatTemplateError(f"{file} cannot be read: {error}.") from error
        if isinstance(source, list) and all(isinstance(entry, dict) and "name" in entry for entry in source):
            source = next((entry.get("template") for entry in source if entry["name"] == "default"), None)
        if source is not None and not isinstance(source, str):
            raise ChatTemplateError(
                f"{folder / 'tokenizer_config.json'}: chat_template is {source!r}; it must be a text, or a list of "
                "{name, template}. Get the file again."
            )
        return None if source is None else cls(source, _special_tokens(config))

    def render(
        self,
        messages: Seq[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Seq[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt text. `variables` are passed to the template; they may stand in for special tokens.

        Raises `ChatTemplateError`.
        """
        _check_messages(messages)
        template = self._compiled
        known = {"messages": messages, "tools": tools, "add_generation_prompt": add_generation_prompt}
        try:
            text: str = template.render({"documents": None, **self.special_tokens, **variables, **known})
            return text
        except Exception as error:  # a stranger's program: it may raise anything
            raise ChatTemplateError(f"the model's chat template refused the messages: {error}") from error

    @cached_property
    def _compiled(self) -> Any:
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _generation_extension()]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
        try:
            return environment.from_string(self.source)
        except jinja2.TemplateError as error:
            raise ChatTemplateError(f"the model's chat template is not valid Jinja: {error}") from error


def _generation_extension() -> Any:
    """The tag {% generation %}, which marks the assistant's text for training; here it only shows its body."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012  (jinja2 declares it as a mutable set)

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    return Generation


def _raise_exception(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """JSON without jinja2's HTML escapes, as the templates expect."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _check_messages(messages: Seq[Message]) -> None:
    if isinstance(messages, str | Mapping) or not messages:
        raise ChatTemplateError(f"messages is {messages!r}; it must be a non-empty list of messages.")
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ChatTemplateError(f"a message is {message!r}; it must be a mapping with a 'role' and a 'content'.")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ChatTemplateError(f"{path} cannot be read as JSON: {error}.") from error
    return document if isinstance(document, dict) else {}


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Texts of the special tokens: each a string, or an object with "content"."""
    tokens = {}
    for key in _SPECIAL_TOKENS:
        value = config.get(key)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            tokens[key] = text
    return tokens
