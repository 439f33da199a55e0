"""`nanovllm plugins`: what is installed, what would be used for a model, what is broken and why."""

import argparse

from nanovllm.checkpoint import resolve_model
from nanovllm.errors import NanoVLLMError
from nanovllm.plugins.manager import PluginManager
from nanovllm.plugins.records import ModelRunnerPlugin, ModelSource, TokenizerPlugin

__all__ = ["add_parser"]


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("plugins", help="list backends and tokenizers", description=__doc__)
    parser.add_argument("--model", help="also say which of them can load this model")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    manager = PluginManager.discover()
    source = None if options.model is None else ModelSource(options.model, resolve_model(options.model))
    for title, records in (("Backends", manager.model_runners()), ("Tokenizers", manager.tokenizers())):
        print(f"{title}:")
        for record in records.values():
            print(f"  {record.name:<14} {_describe(record)}  [{manager.origin(record)}]")
            if isinstance(record, ModelRunnerPlugin) and record.status is not None:
                print(f"  {'':<14} {record.status()}")
            if source is not None:
                verdict = record.can_load(source)
                print(f"  {'':<14} {'can' if verdict.loadable else 'cannot'} load {source.name}: {verdict.reason}")
    if manager.broken:
        print("Broken:")
        for problem in manager.broken:
            print(f"  {problem.name}: {problem.reason}")
        raise NanoVLLMError(f"{len(manager.broken)} broken plugin(s) were skipped: repair or uninstall them.")


def _describe(record: ModelRunnerPlugin | TokenizerPlugin) -> str:
    if isinstance(record, ModelRunnerPlugin):
        return f"priority {record.priority}, {record.kv} KV cache, devices: {', '.join(record.devices)}"
    return f"priority {record.priority}"
