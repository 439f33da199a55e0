"""ServerSettings: every setting of the HTTP server, checked when it is made and never changed afterwards.

In: plain values. Out: a frozen record. Each field's type carries the help of its option, so that the command line says
the same. Knows nothing about the engine and its options.
"""

import hashlib
import math
import re
from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from nanovllm.errors import ConfigError

__all__ = ["LogFormat", "LogLevel", "ServerSettings", "key_digest"]

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_METRIC_PREFIX = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


def key_digest(key: str) -> str:
    """What is kept of an API key: "sha256:" and 64 hexadecimal digits."""
    return "sha256:" + hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Settings of one server; the defaults suit one machine. None means "no limit" or "the model's own".

    api_keys: keys, or what `key_digest` makes of them; only the digests are kept. Without any, everybody may ask.
    Durations are in seconds, sizes in bytes, lengths in tokens. Raises `ConfigError`.
    """

    host: Annotated[str, "address to listen on; 0.0.0.0 for every network of the machine"] = "127.0.0.1"
    port: Annotated[int, "port to listen on; 0 takes a free one and prints it"] = 8000
    root_path: Annotated[str, "path under which a proxy publishes the server, such as /llm"] = ""
    api_keys: Annotated[tuple[str, ...], "key that clients must send; may be repeated"] = field(default=(), repr=False)
    served_model_names: Annotated[tuple[str, ...], "name of the model in requests and answers; may be repeated"] = ()
    allowed_origins: Annotated[tuple[str, ...], "web origin that browsers may call from; may be repeated"] = ()

    max_body_bytes: Annotated[int, "longest request body, in bytes"] = 16 * 2**20
    max_prompt_tokens: Annotated[int | None, "longest prompt, in tokens (default: the model's length)"] = None
    max_n: Annotated[int, "most continuations of a prompt, n"] = 128
    max_stop: Annotated[int, "most stop strings of a request"] = 16
    max_queued_requests: Annotated[int, "prompts held at once, running or waiting; more are told 503"] = 1024
    max_queued_tokens: Annotated[int, "prompt tokens held at once, running or waiting; more are told 503"] = 2**20
    request_timeout_s: Annotated[float | None, "longest time for a request, in seconds; 0 is no limit"] = 600.0
    requests_per_minute: Annotated[int | None, "requests of a key in a minute (default: no limit)"] = None
    tokens_per_minute: Annotated[int | None, "prompt and new tokens of a key in a minute (default: no limit)"] = None

    shutdown_timeout_s: Annotated[float, "time that running requests get to finish after SIGTERM, in seconds"] = 30.0
    keep_alive_s: Annotated[float, "silence on an event stream before a comment keeps it open, in seconds"] = 15.0
    metrics_prefix: Annotated[str, "prefix of the metrics; vllm suits dashboards that are made for vLLM"] = "nanovllm"
    log_format: Annotated[LogFormat, "form of the log"] = "text"
    log_level: Annotated[LogLevel, "least level that is logged"] = "info"
    otlp_endpoint: Annotated[str | None, "URL of an OpenTelemetry collector (OTLP over HTTP) that gets traces"] = None

    tool_parser: Annotated[str | None, "form of the model's tool calls: hermes, llama3_json, mistral"] = None
    reasoning_parser: Annotated[str | None, "form of the model's reasoning: think, qwen3, deepseek_r1"] = None
    chat_template: Annotated[str | None, "Jinja text in place of the model's chat template"] = None
    enable_page: Annotated[bool, "serve the web page at /"] = True

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_texts()
        digests = tuple(dict.fromkeys(key if _DIGEST.fullmatch(key) else key_digest(key) for key in self.api_keys))
        object.__setattr__(self, "api_keys", digests)
        if self.request_timeout_s == 0:
            object.__setattr__(self, "request_timeout_s", None)

    def _check_numbers(self) -> None:
        if not _is_int(self.port) or not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port!r}; it must be an integer from 0 to 65535.")
        for name in ("max_body_bytes", "max_n", "max_stop", "max_queued_requests", "max_queued_tokens"):
            _check_count(name, getattr(self, name))
        for name in ("max_prompt_tokens", "requests_per_minute", "tokens_per_minute"):
            if getattr(self, name) is not None:
                _check_count(name, getattr(self, name))
        _check_seconds("shutdown_timeout_s", self.shutdown_timeout_s)
        _check_seconds("keep_alive_s", self.keep_alive_s, above_zero=True)
        if self.request_timeout_s is not None:
            _check_seconds("request_timeout_s", self.request_timeout_s)

    def _check_texts(self) -> None:
        for name in ("api_keys", "served_model_names", "allowed_origins"):
            values = getattr(self, name)
            if not isinstance(values, tuple) or not all(isinstance(value, str) and value for value in values):
                given = "a value that is none" if name == "api_keys" else repr(values)  # a key never shows
                raise ConfigError(f"{name} is {given}; it must be a tuple of non-empty strings.")
        for name in ("tool_parser", "reasoning_parser", "chat_template", "otlp_endpoint"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise ConfigError(f"{name} is {value!r}; it must be a non-empty string or None.")
        if not isinstance(self.host, str) or not self.host:
            raise ConfigError(f"host is {self.host!r}; it must be a non-empty string.")
        if not isinstance(self.enable_page, bool):
            raise ConfigError(f"enable_page is {self.enable_page!r}; it must be True or False.")
        root = self.root_path
        if not isinstance(root, str) or (root and (not root.startswith("/") or root.endswith("/"))):
            raise ConfigError(
                f"root_path is {root!r}; it must be empty, or begin and not end with '/', such as '/llm'."
            )
        if not isinstance(self.metrics_prefix, str) or not _METRIC_PREFIX.fullmatch(self.metrics_prefix):
            raise ConfigError(f"metrics_prefix is {self.metrics_prefix!r}; it must be letters, digits and '_'.")
        for name, choices in (("log_format", get_args(LogFormat)), ("log_level", get_args(LogLevel))):
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(choices)}.")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} is {value!r}; it must be an integer of at least 1.")


def _check_seconds(name: str, value: object, *, above_zero: bool = False) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or value < 0 or (above_zero and value == 0):  # type: ignore[operator]
        raise ConfigError(
            f"{name} is {value!r}; it must be a number of seconds, {'above' if above_zero else 'at least'} 0."
        )
