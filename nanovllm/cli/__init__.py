"""The command line: `nanovllm generate | chat | serve | bench | export | plugins`, also as `python -m nanovllm`.

Answers go to stdout; progress, notes and errors to stderr. Exit codes: 0, 2 for a user's mistake or a model that
cannot be used, 1 for a failure while running, 130 for Ctrl-C.
"""

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Sequence as Seq

from nanovllm import __version__
from nanovllm.cli import bench, chat, export, generate, plugins, serve
from nanovllm.errors import BackendError, NanoVLLMError

__all__ = ["main"]


def main(argv: Seq[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["export"]:
        return export.run(arguments[1:])  # its own parser knows its options
    options = _parser().parse_args(arguments)
    _prepare_output()
    try:
        options.run(options)
        sys.stdout.flush()
    except NanoVLLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, BackendError) else 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away; keep the interpreter from flushing into it
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nanovllm", description="A small LLM inference engine.")
    parser.add_argument("--version", action="version", version=f"nanovllm {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in (generate, chat, serve, bench, export, plugins):
        command.add_parser(commands)
    return parser


def _prepare_output() -> None:
    """Notes of the engine go to stderr; a console that cannot show a character shows a substitute."""
    logger = logging.getLogger("nanovllm")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
