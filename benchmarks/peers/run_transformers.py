"""transformers, from a Hugging Face folder: static batches, padded on the left, or its own continuous batching."""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from round_server import Engine, TokenIds, in_batches, serve

PAGE_TOKENS = 256  # transformers' default


def load(model: str, options: dict[str, Any]) -> Engine:
    torch.set_num_threads(options["threads"])
    network = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, options["dtype"])).eval()
    network.generation_config = transformers.GenerationConfig(eos_token_id=None, pad_token_id=0, do_sample=False)
    run = (
        _continuous(network, options["kv_cache_gib"])
        if options["continuous"]
        else _static(network, options["batch_size"])
    )
    return Engine("transformers", transformers.__version__, run)


def _static(network: Any, batch_size: int) -> Callable[[TokenIds, list[int]], TokenIds]:
    @torch.inference_mode()
    def run_batch(prompts: TokenIds, output_len: int) -> TokenIds:
        longest = max(map(len, prompts))
        token_ids = torch.tensor([[0] * (longest - len(ids)) + list(ids) for ids in prompts])
        mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts])
        out = network.generate(token_ids, attention_mask=mask, max_new_tokens=output_len, min_new_tokens=output_len)
        return out[:, longest:].tolist()

    return lambda prompts, output_lens: in_batches(run_batch, batch_size, prompts, output_lens)


def _continuous(network: Any, kv_cache_gib: float) -> Callable[[TokenIds, list[int]], TokenIds]:
    c = network.config
    token_bytes = 2 * c.num_hidden_layers * c.num_key_value_heads * _head_dim(c) * network.dtype.itemsize
    config = transformers.ContinuousBatchingConfig(
        page_size=PAGE_TOKENS,
        num_blocks=int(kv_cache_gib * 2**30 / (PAGE_TOKENS * token_bytes)),
        max_batch_tokens=512,  # these two as in our engine
        max_requests_per_batch=64,
    )

    def run(prompts: TokenIds, output_lens: list[int]) -> TokenIds:
        with network.continuous_batching_context_manager(continuous_batching_config=config) as manager:
            for number, (ids, length) in enumerate(zip(prompts, output_lens, strict=True)):
                manager.add_request(list(ids), request_id=str(number), max_new_tokens=length, eos_token_id=-1)
            answers: dict[int, list[int]] = {}
            while len(answers) < len(prompts):
                result = manager.get_result(timeout=1)
                if result is not None and result.is_finished():
                    answers[int(result.request_id)] = result.generated_tokens
                elif result is None and not manager.is_running():
                    raise RuntimeError("transformers' generation thread ended early")
        return [answers[number] for number in range(len(prompts))]

    return run


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


if __name__ == "__main__":
    serve(load, {"threads": 2, "dtype": "bfloat16", "batch_size": 16, "continuous": 0, "kv_cache_gib": 2})
