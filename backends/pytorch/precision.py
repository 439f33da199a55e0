"""Which dtype a model computes in.

In: what the user asked for, what the checkpoint holds and the processor. Out: a torch dtype. "auto" takes the
checkpoint's dtype where the processor multiplies it at least as quickly as float32, and float32 elsewhere: bf16 where
it has AVX-512 BF16 or AMX, fp16 where it has AMX FP16.
"""

import logging
from collections import Counter

import torch

from nanovllm.checkpoint import Checkpoint

__all__ = ["choose_dtype", "is_quick_on_cpu", "stored_dtype"]

logger = logging.getLogger("nanovllm")

_BY_NAME = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_dtype(wanted: str, checkpoint: Checkpoint, device: torch.device) -> torch.dtype:
    """`wanted`: "auto" or the name of a dtype."""
    if wanted != "auto":
        return _BY_NAME[wanted]
    stored = stored_dtype(checkpoint)
    if device.type != "cpu" or is_quick_on_cpu(stored):
        return stored
    logger.info("the weights are %s, in which this processor is slow: float32 is used", stored)
    return torch.float32


def stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The dtype of most numbers of the checkpoint; float32 for those that have no place here, such as float64."""
    num_bytes: Counter[str] = Counter()
    for tensor in checkpoint.tensors.values():
        num_bytes[tensor.dtype.name] += tensor.num_bytes
    name = num_bytes.most_common(1)[0][0] if num_bytes else "float32"
    return _BY_NAME.get(name, torch.float32)


def is_quick_on_cpu(dtype: torch.dtype) -> bool:
    """Whether the processor has instructions for products of this dtype."""
    if dtype == torch.float32:
        return True
    needed = {torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16"), torch.float16: ("amx_fp16",)}
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in needed[dtype])
