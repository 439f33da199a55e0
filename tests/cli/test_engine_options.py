"""Every setting of the engine can be given on the command line."""

import argparse
from dataclasses import fields
from typing import Any

import pytest

from nanovllm.cli.options import add_engine_options, engine_settings
from nanovllm.config import EngineConfig

GIVEN: dict[str, tuple[str, Any]] = {
    "revision": ("--revision v1", "v1"),
    "tokenizer": ("--tokenizer folder", "folder"),
    "tokenizer_backend": ("--tokenizer-backend hf", "hf"),
    "backend": ("--backend mock", "mock"),
    "max_model_len": ("--max-model-len 100", 100),
    "max_num_seqs": ("--max-num-seqs 8", 8),
    "max_num_batched_tokens": ("--max-num-batched-tokens 4096", 4096),
    "block_size": ("--block-size 16", 16),
    "num_kv_blocks": ("--num-kv-blocks 9", 9),
    "kv_cache_memory_bytes": ("--kv-cache-memory-bytes 1000000", 1_000_000),
    "kv_cache_dtype": ("--kv-cache-dtype int8", "int8"),
    "enable_prefix_caching": ("--no-prefix-caching", False),
    "enable_chunked_prefill": ("--no-enable-chunked-prefill", False),
    "scheduling_policy": ("--scheduling-policy priority", "priority"),
    "priority_aging_steps": ("--priority-aging-steps 5", 5),
    "async_scheduling": ("--no-async-scheduling", False),
    "max_num_logits": ("--max-num-logits 1000", 1000),
    "speculative_config": ('--speculative-config {"method":"ngram"}', {"method": "ngram"}),
    "generation_config": ("--generation-config none", "none"),
    "num_threads": ("--num-threads 1", 1),
    "tensor_parallel_size": ("--tensor-parallel-size 2", 2),
    "backend_options": ("--backend-option check=false", {"check": False}),
}


def settings(command_line: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_engine_options(parser)
    return engine_settings(parser.parse_args(command_line.split()))


def test_no_setting_is_left_out() -> None:
    apart = {"model", "seed"}  # every command's own: `--seed` of `generate` is the request's, of `serve` the engine's
    assert GIVEN.keys() | apart == {field.name for field in fields(EngineConfig)}


@pytest.mark.parametrize("name", GIVEN)
def test_an_option_sets_its_field_alone_and_to_what_the_engine_takes(name: str) -> None:
    option, value = GIVEN[name]
    assert settings(option) == {name: value}
    assert getattr(EngineConfig.from_options({name: value}), name) != getattr(EngineConfig(), name)


def test_what_is_not_given_is_left_to_the_engine() -> None:
    assert settings("") == {}


@pytest.mark.parametrize("text", ["ngram", "[1]", '"ngram"'])
def test_a_speculative_config_that_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentError, match=r"speculative-config.*JSON"):
        settings(f"--speculative-config {text}")
