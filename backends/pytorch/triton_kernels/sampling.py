"""Launches the sampler: logits in, token ids out, as `nanovllm.sampler` defines them."""

import torch
from torch import Tensor

from backends.pytorch.triton_kernels.device_code import device_code
from backends.pytorch.triton_kernels.tiling import power_of_two_from

__all__ = ["draw_tokens"]

_LEAST_CHUNK = 2048
_MOST_CHUNKS = 128  # which one program compares with each other
_SUM_WARPS = 8
_PICK_WARPS = 16


def draw_tokens(logits: Tensor, parameters: Tensor, *, chunk: int | None = None) -> Tensor:
    """Token ids, int64 (R,), of logits (R, V): those of the definition, up to the rounding of weights and their sums.

    logits: float32, float16 or bfloat16, tokens adjacent, any distance between rows; not written to. parameters:
    float64 (5, R), contiguous: temperature, top_k, top_p, min_p and the uniform random number. chunk: logits that are
    looked at together, a power of two; None for what suits a device.

    Allocates the tokens and 12 bytes a row and chunk, and waits for nothing. A row's token does not depend on other
    rows. Raises `ConfigError` where Triton is not installed.
    """
    num_rows, vocab_size = logits.shape
    assert parameters.shape == (5, num_rows), "one column of parameters for each row"
    assert parameters.is_contiguous(), "parameters must be contiguous"
    assert logits.stride(1) == 1 or vocab_size == 1, "a row's logits must be adjacent"
    tokens = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    if not num_rows:
        return tokens
    if chunk is None:
        chunk = max(_LEAST_CHUNK, power_of_two_from(-(-vocab_size // _MOST_CHUNKS)))
    num_chunks = -(-vocab_size // chunk)
    maxima = torch.empty(num_rows, num_chunks, dtype=torch.int32, device=logits.device)
    sums = torch.empty(num_rows, num_chunks, dtype=torch.float64, device=logits.device)
    kernels = device_code()
    kernels.sum_chunks[(num_rows, num_chunks)](
        maxima, sums, logits, parameters, vocab_size, logits.stride(0), CHUNK=chunk, num_warps=_SUM_WARPS
    )
    kernels.pick_tokens[(num_rows,)](
        tokens, logits, maxima, sums, parameters, num_rows, vocab_size, logits.stride(0),
        CHUNK=chunk, NUM_CHUNKS=num_chunks, WIDTH=power_of_two_from(num_chunks), num_warps=_PICK_WARPS,
    )  # fmt: skip
    return tokens
