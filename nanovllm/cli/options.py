"""Options that several commands share, and what they become: an `LLM` and `SamplingParams`."""

import argparse
import json
from typing import Any, get_args

from nanovllm.config import GenerationConfig, KVCacheDtype, SchedulingPolicy
from nanovllm.errors import ConfigError
from nanovllm.llm import LLM
from nanovllm.sampling_params import RequestOutputKind, SamplingParams

__all__ = ["add_engine_options", "add_sampling_options", "engine_settings", "load_llm", "sampling_params"]

_ENGINE_COUNTS = (
    ("max-model-len", "longest prompt and output together, in tokens (default: the model's)"),
    ("max-num-seqs", "requests that run at once (default: 64)"),
    ("max-num-batched-tokens", "token budget of one step (default: 512)"),
    ("block-size", "tokens in a block of the KV cache (default: the backend's)"),
    ("num-kv-blocks", "blocks of the KV cache (default: what the memory holds)"),
    ("kv-cache-memory-bytes", "memory of the KV cache (default: half of what is free, at most what can be used)"),
    ("max-num-logits", "rows of logits of one step (default: 256, or twice max-num-seqs)"),
    ("priority-aging-steps", "steps of waiting that are worth one level of priority (default: 1000)"),
    ("num-threads", "compute threads (default: the physical cores)"),
    ("tensor-parallel-size", "processes among which the model is divided (default: 1; backend torch)"),
)
_ENGINE_CHOICES = (
    (
        "kv-cache-dtype",
        get_args(KVCacheDtype),
        "what keys and values are kept in; the smaller, the more tokens fit (default: auto, the backend's own)",
    ),
    ("scheduling-policy", get_args(SchedulingPolicy), "who goes first: who came first (the default), or the urgent"),
    (
        "generation-config",
        get_args(GenerationConfig),
        "whether requests start from the model's own sampling settings (default: auto, they do)",
    ),
)
_SETTINGS = (
    "revision",
    "tokenizer",
    "tokenizer_backend",
    "backend",
    *(name.replace("-", "_") for name, *_ in (*_ENGINE_COUNTS, *_ENGINE_CHOICES)),
    "speculative_config",
    "async_scheduling",
    "enable_prefix_caching",
    "enable_chunked_prefill",
)
"""Fields of `EngineConfig` that an option sets as it is; None where it is not given."""


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("engine")
    group.add_argument("--model", default="tiny-chat", help="folder or Hugging Face id (default: the model in the box)")
    group.add_argument("--revision", help="branch, tag or commit of a Hugging Face id")
    group.add_argument("--tokenizer", help="folder or Hugging Face id, where it is not the model's")
    group.add_argument(
        "--tokenizer-backend", help="one that `nanovllm plugins` lists (default: the best for the model)"
    )
    group.add_argument("--backend", help="one that `nanovllm plugins` lists (default: the best for the model)")
    for name, text in _ENGINE_COUNTS:
        group.add_argument(f"--{name}", type=int, metavar="N", help=text)
    for name, choices, text in _ENGINE_CHOICES:
        group.add_argument(f"--{name}", choices=choices, help=text)
    group.add_argument(
        "--speculative-config",
        type=_json_object,
        metavar="JSON",
        help='guesses at the next tokens, such as \'{"method": "ngram"}\' (default: none)',
    )
    group.add_argument(
        "--async-scheduling",
        action=argparse.BooleanOptionalAction,
        help="prepare a step while the one before is computed (default: where the backend can)",
    )
    for feature, text in (
        ("prefix-caching", "compute every prompt from its start"),
        ("chunked-prefill", "compute every prompt in one step"),
    ):
        flags = f"--no-{feature}", f"--no-enable-{feature}"
        dest = "enable_" + feature.replace("-", "_")
        group.add_argument(*flags, dest=dest, action="store_const", const=False, help=text)
    group.add_argument(
        "--backend-option", action="append", default=[], metavar="KEY=VALUE", help="an option of the backend's own"
    )


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument("--max-tokens", type=int, default=256, metavar="N", help="longest output (default: 256)")
    group.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default: 0)")
    group.add_argument("--top-p", type=float, default=1.0, metavar="P", help="keep the likeliest that reach P")
    group.add_argument("--top-k", type=int, default=0, metavar="K", help="keep the K likeliest (default: 0, all)")
    group.add_argument("--min-p", type=float, default=0.0, metavar="P", help="drop what is P times less likely")
    group.add_argument("--seed", type=int, metavar="N", help="makes the output reproducible")
    group.add_argument("--stop", action="append", metavar="TEXT", help="end the output here; may be repeated")
    group.add_argument("--ignore-eos", action="store_true", help="go on after the model's end of sequence")


def load_llm(options: argparse.Namespace) -> LLM:
    """The model that the options name."""
    return LLM(options.model, **engine_settings(options))


def engine_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of `EngineConfig` that the user set, but for the model."""
    settings = {name: value for name in _SETTINGS if (value := getattr(options, name)) is not None}
    if options.backend_option:
        settings["backend_options"] = dict(_key_value(text) for text in options.backend_option)
    return settings


def sampling_params(options: argparse.Namespace, output_kind: RequestOutputKind) -> SamplingParams:
    return SamplingParams(
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        min_p=options.min_p,
        seed=options.seed,
        stop=options.stop,
        ignore_eos=options.ignore_eos,
        output_kind=output_kind,
    )


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'{text!r} must be a JSON object, such as \'{{"method": "ngram"}}\'')
    return value


def _key_value(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ConfigError(f"--backend-option is {text!r}; it must be KEY=VALUE, such as check=false.")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
