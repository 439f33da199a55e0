"""`nanovllm serve`: an OpenAI-compatible HTTP server of one model. Ends with SIGTERM or Ctrl-C, exit code 0."""

import argparse
import asyncio
import ipaddress
import os
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from nanovllm.async_llm import AsyncLLM
from nanovllm.cli.options import add_engine_options, engine_settings
from nanovllm.errors import ConfigError
from nanovllm.server.settings import ServerSettings

__all__ = ["add_parser"]

_KEYS_VARIABLE = "NANOVLLM_API_KEYS"
_FLAGS = {
    "api_keys": "--api-key",
    "served_model_names": "--served-model-name",
    "allowed_origins": "--allowed-origin",
    "enable_page": "--no-page",
}
"""Where the option is not simply the field's name, without the unit."""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("serve", help="answer HTTP requests", description=__doc__)
    group = parser.add_argument_group("server")
    hints = get_type_hints(ServerSettings, include_extras=True)
    for setting in fields(ServerSettings):
        _add_option(group, setting.name, hints[setting.name], setting.default)
    group.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help=f"keys, one a line; better than --api-key, which others see in the process list. Or set {_KEYS_VARIABLE}",
    )
    add_engine_options(parser)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of requests without one (default: 0)")
    parser.set_defaults(run=_run)


def _add_option(group: argparse._ArgumentGroup, name: str, hint: Any, default: Any) -> None:
    """The option of one setting: its type and help are the field's."""
    assert get_origin(hint) is Annotated, f"{name} has no help"
    kind, text = get_args(hint)
    flag = _FLAGS.get(name, "--" + name.removesuffix("_s").replace("_", "-"))
    if isinstance(default, int | float | str) and default != "" and kind is not bool:
        text += f" (default: {default:g})" if isinstance(default, float) else f" (default: {default})"
    if kind is bool:
        group.add_argument(flag, dest=name, action="store_false", help=f"do not {text}")
    elif get_origin(kind) is tuple:
        group.add_argument(flag, dest=name, action="append", default=[], metavar="TEXT", help=text)
    elif get_origin(kind) is Literal:
        group.add_argument(flag, dest=name, choices=get_args(kind), default=default, help=text)
    else:
        plain = next(part for part in (get_args(kind) or (kind,)) if part is not NoneType)
        metavar = {int: "N", float: "SECONDS", str: "TEXT"}[plain]
        group.add_argument(flag, dest=name, type=plain, default=default, metavar=metavar, help=text)


def _run(options: argparse.Namespace) -> None:
    settings = _settings(options)  # checked before the model is loaded
    try:
        from nanovllm.server.run import open_socket, run_server

        if settings.otlp_endpoint is not None:
            import nanovllm.server.tracing  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("nanovllm"):
            raise  # a defect of ours, which no installation mends
        extras = "server" if settings.otlp_endpoint is None else "server,otel"
        raise ConfigError(
            f"the server needs {error.name}, which is not installed. Install it: pip install 'nanovllm[{extras}]'."
        ) from error
    if not settings.api_keys and not _is_loopback(settings.host):
        print(f"warning: whoever reaches {settings.host} may ask; give a key with --api-key-file", file=sys.stderr)
    with open_socket(settings.host, settings.port) as sock:
        print(f"loading {options.model}", file=sys.stderr)
        llm = AsyncLLM(options.model, seed=options.seed, **engine_settings(options))
        asyncio.run(run_server(llm, settings, sock))


def _settings(options: argparse.Namespace) -> ServerSettings:
    values = {setting.name: getattr(options, setting.name) for setting in fields(ServerSettings)}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    values["api_keys"] += tuple(_keys(options.api_key_file))
    template = values["chat_template"]
    if template is not None and "{" not in template:  # no Jinja: the name of a file
        values["chat_template"] = _read(Path(template), "--chat-template")
    return ServerSettings(**values)


def _keys(file: Path | None) -> Iterator[str]:
    """Keys from the file and from the environment. A source that holds none is a mistake: it would open the server."""
    sources = {}
    if file is not None:
        lines = (line.strip() for line in _read(file, "--api-key-file").splitlines())
        sources[f"--api-key-file {file}"] = [line for line in lines if line and not line.startswith("#")]
    if _KEYS_VARIABLE in os.environ:
        sources[_KEYS_VARIABLE] = os.environ[_KEYS_VARIABLE].replace(",", " ").split()
    for name, keys in sources.items():
        if not keys:
            raise ConfigError(f"{name} holds no key. Put one into it, or leave it out to let everybody ask.")
        yield from keys


def _read(path: Path, option: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{option} is {str(path)!r}, which cannot be read: {error}.") from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
