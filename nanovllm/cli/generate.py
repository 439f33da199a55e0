"""`nanovllm generate PROMPT...`: answers prompts in one batch, or streams the answers one after the other."""

import argparse
import sys
from collections.abc import Iterator

from nanovllm.cli.options import add_engine_options, add_sampling_options, load_llm, sampling_params
from nanovllm.llm import LLM
from nanovllm.outputs import RequestOutput
from nanovllm.sampling_params import RequestOutputKind, SamplingParams

__all__ = ["add_parser"]


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("generate", help="answer prompts", description=__doc__)
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="a question or text; - reads it from stdin")
    parser.add_argument("--no-chat", action="store_true", help="continue the text as it is, without a chat template")
    parser.add_argument("--system", metavar="TEXT", help="a system message before each question")
    parser.add_argument("--stream", action="store_true", help="print the text as it is made")
    parser.add_argument("--quiet", action="store_true", help="no progress line")
    add_engine_options(parser)
    add_sampling_options(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    kind = RequestOutputKind.DELTA if options.stream else RequestOutputKind.FINAL_ONLY
    params = sampling_params(options, kind)  # checked before the model is loaded
    prompts = [sys.stdin.read() if prompt == "-" else prompt for prompt in options.prompts]
    with load_llm(options) as llm:
        chat = not options.no_chat
        if chat and not llm.has_chat_template:
            print("this model has no chat template: the prompts are continued as they are", file=sys.stderr)
            chat = False
        if options.stream:
            for prompt in prompts:
                _print_stream(prompt if len(prompts) > 1 else None, _stream(llm, prompt, params, options, chat))
        else:
            _print_batch(prompts, _generate(llm, prompts, params, options, chat))


def _generate(
    llm: LLM, prompts: list[str], params: SamplingParams, options: argparse.Namespace, chat: bool
) -> list[RequestOutput]:
    progress = False if options.quiet else None
    if chat:
        return llm.chat([_messages(prompt, options.system) for prompt in prompts], params, progress=progress)
    return llm.generate(prompts, params, progress=progress)


def _stream(
    llm: LLM, prompt: str, params: SamplingParams, options: argparse.Namespace, chat: bool
) -> Iterator[RequestOutput]:
    return llm.stream_chat(_messages(prompt, options.system), params) if chat else llm.stream(prompt, params)


def _messages(prompt: str, system: str | None) -> list[dict[str, str]]:
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, {"role": "user", "content": prompt}]


def _print_batch(prompts: list[str], outputs: list[RequestOutput]) -> None:
    """One answer is printed alone; several each under its prompt."""
    for prompt, output in zip(prompts, outputs, strict=True):
        if len(prompts) > 1:
            print(f"> {prompt}")
        print(output.outputs[0].text)


def _print_stream(heading: str | None, outputs: Iterator[RequestOutput]) -> None:
    if heading is not None:
        print(f"> {heading}")
    for output in outputs:
        print(output.outputs[0].text, end="", flush=True)
    print()
