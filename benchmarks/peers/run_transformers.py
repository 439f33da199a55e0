"""transformers, from a Hugging Face folder: static batches, padded on the left."""

from typing import Any

import torch
import transformers
from round_server import Engine, TokenIds, in_batches, serve


def load(model: str, options: dict[str, Any]) -> Engine:
    torch.set_num_threads(options["threads"])
    network = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, options["dtype"])).eval()
    network.generation_config = transformers.GenerationConfig(eos_token_id=None, pad_token_id=0, do_sample=False)

    @torch.inference_mode()
    def run_batch(prompts: TokenIds, output_len: int) -> TokenIds:
        longest = max(map(len, prompts))
        token_ids = torch.tensor([[0] * (longest - len(ids)) + list(ids) for ids in prompts])
        mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts])
        out = network.generate(token_ids, attention_mask=mask, max_new_tokens=output_len, min_new_tokens=output_len)
        return out[:, longest:].tolist()

    def run(prompts: TokenIds, output_lens: list[int]) -> TokenIds:
        return in_batches(run_batch, options["batch_size"], prompts, output_lens)

    return Engine("transformers", transformers.__version__, run)


serve(load, {"threads": 2, "dtype": "bfloat16", "batch_size": 16})
