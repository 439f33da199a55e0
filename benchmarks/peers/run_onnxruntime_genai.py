"""onnxruntime-genai, from a folder that its model builder wrote: static batches, padded on the
right: so a request's tokens are those that it gets alone, which padding on the left does not give."""

import json
from typing import Any

import numpy as np
import onnxruntime_genai
from round_server import Engine, TokenIds, in_batches, serve


def load(model: str, options: dict[str, Any]) -> Engine:
    config = onnxruntime_genai.Config(model)
    session_options = {"intra_op_num_threads": options["threads"]}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": session_options}}}))
    network = onnxruntime_genai.Model(config)

    def run_batch(prompts: TokenIds, output_len: int) -> TokenIds:
        longest = max(map(len, prompts))
        params = onnxruntime_genai.GeneratorParams(network)
        length = longest + output_len
        params.set_search_options(batch_size=len(prompts), max_length=length, min_length=length, do_sample=False)
        generator = onnxruntime_genai.Generator(network, params)
        padding = options["pad_token_id"]
        generator.append_tokens(np.array([list(ids) + [padding] * (longest - len(ids)) for ids in prompts], np.int32))
        while not generator.is_done():
            generator.generate_next_token()
        return [generator.get_sequence(i)[longest:].tolist() for i in range(len(prompts))]

    def run(prompts: TokenIds, output_lens: list[int]) -> TokenIds:
        return in_batches(run_batch, options["batch_size"], prompts, output_lens)

    return Engine("onnxruntime-genai", onnxruntime_genai.__version__, run)


serve(load, {"threads": 2, "batch_size": 1, "pad_token_id": 151643})
