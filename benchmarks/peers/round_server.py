"""The half of the comparison that runs inside an engine's own environment: loads it once, runs rounds on command.

In: `--model PATH [--option KEY=VALUE]...`, then one round a line on stdin, as JSON: {"prompts": [[id, ...], ...],
"output_lens": [n, ...]}. Out, one JSON object a line: first {"engine", "version", "load_s"}, then for each round
{"seconds", "token_ids", "peak_memory_bytes"}. What the engine prints goes to stderr. Ends when stdin does.

The standard library alone, and Python 3.10 or later: an engine's environment has nothing of ours.
"""

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

TokenIds = Sequence[Sequence[int]]


class Engine(NamedTuple):
    """A loaded engine. run: prompts and output lengths in, the new tokens of each prompt out; greedy, past any end of
    sequence. memory_bytes: the peak of other processes that it consists of."""

    name: str
    version: str
    run: Callable[[TokenIds, Sequence[int]], TokenIds]
    memory_bytes: Callable[[], int] = lambda: 0


def serve(load: Callable[[str, dict[str, Any]], Engine], defaults: dict[str, Any]) -> None:
    """load: a model's path and the engine's options in, the engine out. defaults: all options that there are."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    options = dict(defaults)
    for text in arguments.option:
        key, _, value = text.partition("=")
        if key not in defaults:
            sys.exit(f"unknown option {key!r}; this engine's are: {', '.join(defaults) or 'none'}")
        options[key] = type(defaults[key])(value)
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else is printed, also by compiled code
    start = time.perf_counter()
    engine = load(arguments.model, options)
    _reply(replies, {"engine": engine.name, "version": engine.version, "load_s": time.perf_counter() - start})
    for line in sys.stdin:
        task = json.loads(line)
        start = time.perf_counter()
        token_ids = engine.run(task["prompts"], task["output_lens"])
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        reply = {"seconds": seconds, "token_ids": [list(map(int, ids)) for ids in token_ids]}
        _reply(replies, {**reply, "peak_memory_bytes": peak + engine.memory_bytes()})


def in_batches(
    run_batch: Callable[[TokenIds, int], TokenIds], batch_size: int, prompts: TokenIds, output_lens: Sequence[int]
) -> TokenIds:
    """For an engine without continuous batching: each batch waits for its longest; what a request did not ask for is
    cut off and not counted. run_batch: prompts and one output length in, that many tokens for each prompt out."""
    token_ids: list[Sequence[int]] = []
    for start in range(0, len(prompts), batch_size):
        lengths = output_lens[start : start + batch_size]
        found = run_batch(prompts[start : start + batch_size], max(lengths))
        token_ids += [ids[:length] for ids, length in zip(found, lengths, strict=True)]
    return token_ids


def _reply(replies: Any, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()
