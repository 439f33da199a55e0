"""`nanovllm export`: an alias of `python -m export`, run as a program of its own: the core does not import it."""

import argparse
import subprocess
import sys
from collections.abc import Sequence as Seq

__all__ = ["add_parser", "run"]


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Only for the list of commands; `run` is called before its arguments are parsed."""
    commands.add_parser("export", help="turn a Hugging Face model into ONNX", add_help=False)


def run(arguments: Seq[str]) -> int:
    """Exit code of the exporter. -P keeps an export.py in the working folder from being taken for it."""
    process = subprocess.Popen([sys.executable, "-P", "-m", "export", *arguments])
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the terminal has sent Ctrl-C to the exporter too; it cleans up and ends
            continue
