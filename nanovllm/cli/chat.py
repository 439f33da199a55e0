"""`nanovllm chat`: a conversation in the terminal, streamed. /clear starts anew, /exit or Ctrl-D ends it."""

import argparse
import contextlib
import sys

from nanovllm.cli.options import add_engine_options, add_sampling_options, load_llm, sampling_params
from nanovllm.errors import RequestError
from nanovllm.llm import LLM
from nanovllm.sampling_params import RequestOutputKind, SamplingParams

__all__ = ["add_parser"]


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("chat", help="talk to a model", description=__doc__)
    parser.add_argument("--system", metavar="TEXT", help="a system message before the conversation")
    add_engine_options(parser)
    add_sampling_options(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    params = sampling_params(options, RequestOutputKind.DELTA)
    with contextlib.suppress(ImportError):  # line editing, where the platform has it
        import readline  # noqa: F401
    with load_llm(options) as llm:
        print(f"{llm.model_info.model_name}: /clear starts anew, /exit ends.", file=sys.stderr)
        _converse(llm, params, options.system)


def _converse(llm: LLM, params: SamplingParams, system: str | None) -> None:
    opening = [] if system is None else [{"role": "system", "content": system}]
    messages = list(opening)
    while True:
        question = _read_line()
        if question is None or question.strip() in ("/exit", "/quit"):
            return
        if question.strip() == "/clear":
            messages = list(opening)
        elif question.strip():
            messages.append({"role": "user", "content": question})
            answer = _answer(llm, messages, params)
            if answer is None:
                messages.pop()
            else:
                messages.append({"role": "assistant", "content": answer})


def _read_line() -> str | None:
    """One line of the user's; None at the end of input or on Ctrl-C."""
    try:
        return input("> " if sys.stdin.isatty() else "")
    except (EOFError, KeyboardInterrupt):
        print()
        return None


def _answer(llm: LLM, messages: list[dict[str, str]], params: SamplingParams) -> str | None:
    """Prints an answer as it is made. Ctrl-C stops it there; None where the conversation was refused."""
    pieces: list[str] = []
    try:
        with contextlib.closing(llm.stream_chat(messages, params)) as outputs:
            for output in outputs:
                pieces.append(output.outputs[0].text)
                print(pieces[-1], end="", flush=True)
    except KeyboardInterrupt:
        print(" [stopped]", end="")
    except RequestError as error:
        print(f"error: {error} /clear starts anew.", file=sys.stderr)
        return None
    print()
    return "".join(pieces)
