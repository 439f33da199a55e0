"""Ours. Options: the fields of EngineConfig, as JSON in `engine`, over those of the comparison."""

import json
from typing import Any

from round_server import Engine, TokenIds, serve

from nanovllm import LLM, SamplingParams, __version__


def load(model: str, options: dict[str, Any]) -> Engine:
    settings = {"kv_cache_memory_bytes": int(options["kv_cache_gib"] * 2**30), "num_threads": options["threads"]}
    llm = LLM(model, **{**settings, **json.loads(options["engine"])})

    def run(prompts: TokenIds, output_lens: list[int]) -> TokenIds:
        params = [SamplingParams(temperature=0, max_tokens=length, ignore_eos=True) for length in output_lens]
        return [output.outputs[0].token_ids for output in llm.generate(prompts, params, progress=False)]

    return Engine("nanovllm", __version__, run)


serve(load, {"kv_cache_gib": 2.0, "threads": 2, "engine": "{}"})
