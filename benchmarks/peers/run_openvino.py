"""OpenVINO GenAI's ContinuousBatchingPipeline, from a folder that `optimum-cli export openvino` wrote.

`prefix_caching` is off as by its default; it does not share among requests that arrive together.
"""

from typing import Any

import numpy as np
import openvino
import openvino_genai
from round_server import Engine, TokenIds, serve


def load(model: str, options: dict[str, Any]) -> Engine:
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = options["kv_cache_gib"]
    scheduler.max_num_batched_tokens = options["max_num_batched_tokens"]
    scheduler.max_num_seqs = options["max_num_seqs"]
    scheduler.dynamic_split_fuse = True
    scheduler.enable_prefix_caching = bool(options["prefix_caching"])
    pipeline = openvino_genai.ContinuousBatchingPipeline(
        model, scheduler, "CPU", {"INFERENCE_NUM_THREADS": options["threads"]}
    )

    def run(prompts: TokenIds, output_lens: list[int]) -> TokenIds:
        inputs = [openvino.Tensor(np.array([ids], np.int64)) for ids in prompts]
        configs = []
        for length in output_lens:
            config = openvino_genai.GenerationConfig()
            config.max_new_tokens = length
            config.ignore_eos = True
            config.do_sample = False
            configs.append(config)
        return [result.m_generation_ids[0] for result in pipeline.generate(inputs, configs)]

    return Engine("OpenVINO GenAI", openvino_genai.__version__, run)


serve(
    load,
    {"kv_cache_gib": 2, "threads": 2, "max_num_batched_tokens": 512, "max_num_seqs": 64, "prefix_caching": 0},
)
