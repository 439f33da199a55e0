"""Training. In: a packer of batches; out: a Qwen2 model in fp32. It knows nothing about facts or files."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from models.tiny_chat_recipe.corpus import CorpusWriter
from models.tiny_chat_recipe.packing import Batch, Packer

# (row length, share of the steps): short rows teach a conversation at position 0, long rows the later positions.
ROW_LENGTHS: tuple[tuple[int, float], ...] = ((128, 0.55), (512, 0.29), (1024, 0.11), (2048, 0.05))

# On CPUs, plain matrix products are the faster attention up to this length.
_MAX_EAGER_LENGTH = 256


@dataclass(frozen=True)
class TrainingConfig:
    """The numbers of one training run; the same numbers on the same versions and threads give the same weights."""

    seed: int = 0
    num_steps: int = 600
    num_tokens_per_step: int = 4096
    num_warmup_steps: int = 20
    decay_share: float = 0.5
    matrix_learning_rate: float = 0.02
    vector_learning_rate: float = 0.004
    num_threads: int = 2


@dataclass(frozen=True)
class TrainingTime:
    """Wall time, and processor time summed over the threads (which a busy machine stretches less)."""

    wall_s: float
    cpu_s: float


def build_model(config: Qwen2Config, seed: int) -> Qwen2ForCausalLM:
    """Return a freshly initialized model."""
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(config)


def _optimizers(model: Qwen2ForCausalLM, config: TrainingConfig) -> tuple[torch.optim.Optimizer, ...]:
    """Return Muon for the layers' matrices and AdamW for the embedding, the biases and the norms."""
    embedding = model.get_parameter("model.embed_tokens.weight")
    matrices = [p for p in model.parameters() if p.ndim == 2 and p is not embedding]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    return (
        torch.optim.Muon(matrices, lr=config.matrix_learning_rate, weight_decay=0.01, momentum=0.95, ns_steps=5),
        torch.optim.AdamW(
            [embedding, *vectors], lr=config.vector_learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True
        ),
    )


def learning_rate_factor(step: int, config: TrainingConfig) -> float:
    """Return the share of the peak learning rate at a step: up, flat, then straight down to almost nothing."""
    up = min(1.0, (step + 1) / config.num_warmup_steps)
    down = min(1.0, (config.num_steps - step) / (config.num_steps * config.decay_share))
    return min(up, down)


def batch_loss(model: Qwen2ForCausalLM, batch: Batch) -> Tensor:
    """Return the mean cross-entropy over the flagged tokens; only those pass through the head."""
    token_ids = torch.from_numpy(batch.token_ids)
    in_loss = torch.from_numpy(batch.in_loss[:, 1:])
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=token_ids[:, :-1], use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[in_loss])
    return nn.functional.cross_entropy(logits.float(), token_ids[:, 1:][in_loss])


def train(
    model: Qwen2ForCausalLM, tokenizer: Tokenizer, config: TrainingConfig, report: Callable[[str], None]
) -> TrainingTime:
    """Train the model in place and return the time that it took; `report` gets a line now and then."""
    torch.set_num_threads(config.num_threads)
    rng = np.random.default_rng(config.seed)
    packers = {
        is_long: Packer(tokenizer, CorpusWriter(random.Random(f"{config.seed} {is_long}")).documents(long=is_long))
        for is_long in (False, True)
    }
    lengths, shares = zip(*ROW_LENGTHS, strict=True)
    optimizers = _optimizers(model, config)
    peaks = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    started, cpu_started, losses = time.perf_counter(), time.process_time(), []
    model.train()
    for step in range(config.num_steps):
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * learning_rate_factor(step, config)
        row_length = int(rng.choice(lengths, p=shares))
        model.set_attn_implementation("eager" if row_length <= _MAX_EAGER_LENGTH else "sdpa")
        batch = packers[row_length > _MAX_EAGER_LENGTH].batch(config.num_tokens_per_step // row_length, row_length)
        loss = batch_loss(model, batch)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            seconds = time.perf_counter() - started
            report(f"step {step + 1}/{config.num_steps}  loss {np.mean(losses[-50:]):.4f}  {seconds:.0f} s")
    model.train(mode=False)
    model.set_attn_implementation("sdpa")
    return TrainingTime(time.perf_counter() - started, time.process_time() - cpu_started)
