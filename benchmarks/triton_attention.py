"""Triton kernels of the torch backend on a CUDA device, one layer: microseconds, and the share of what the device can.

    python benchmarks/triton_attention.py [--shape qwen3-0.6b] [--rounds 30]

Decode steps are judged by the bandwidth at which the used part of the pools is read, prefill by the products a second
(two matrix products over the pairs that the causal mask leaves). Each workload walks through several layers' pools, so
that keys and values come from memory; times are of a captured graph, without the host's part. Prints the tiling too.
Where there is no CUDA device it says so and ends.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from backends.pytorch.triton_kernels import (
    PackedStep,
    SplitWorkspace,
    Tiling,
    paged_attention,
    rotate_and_store,
    tiling_for,
)


@dataclass(frozen=True)
class Shape:
    num_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int = 32


SHAPES = {"qwen2-0.5b": Shape(14, 2, 64), "qwen3-0.6b": Shape(16, 8, 128), "llama-3-8b": Shape(32, 8, 128)}
DECODES = [(1, 1024), (1, 32768), (8, 1024), (64, 1024), (256, 1024), (256, 128)]
PREFILLS = [(1, 0, 512), (1, 0, 4096), (8, 0, 1024), (1, 8192, 1024)]
POOL_BYTES = 2 << 30  # of all layers together: several times a device's cache


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-0.6b")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--tiling", type=int, nargs=4, metavar=("ROWS", "KEYS", "WARPS", "STAGES"), default=None)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device here: these kernels are timed on one, and nothing was measured.")
    shape = SHAPES[options.shape]
    tiling = None if options.tiling is None else Tiling(*options.tiling)
    print(f"{torch.cuda.get_device_name()}, {options.shape}: {shape}, bfloat16")
    for num_seqs, context in DECODES:
        time_us, used = _attention_us(shape, num_seqs, context - 1, 1, options.rounds, tiling)
        num_bytes = num_seqs * context * shape.num_kv_heads * shape.head_dim * 2 * 2
        print(f"decode {num_seqs} x {context}: {time_us:.1f} us, {num_bytes / time_us / 1e3:.0f} GB/s, {used}")
    for num_seqs, context, new in PREFILLS:
        time_us, used = _attention_us(shape, num_seqs, context, new, options.rounds, tiling)
        pairs = num_seqs * (new * context + new * (new + 1) / 2)
        num_operations = 4 * pairs * shape.num_heads * shape.head_dim
        rate = num_operations / time_us / 1e6
        print(f"prefill {num_seqs} x {new} after {context}: {time_us:.1f} us, {rate:.1f} TFLOP/s, {used}")
    for num_tokens in (1, 256, 8192):
        time_us, num_bytes = _store_us(shape, num_tokens, options.rounds)
        print(f"rotate and store {num_tokens}: {time_us:.1f} us, {num_bytes / time_us / 1e3:.0f} GB/s")


def _attention_us(
    shape: Shape, num_seqs: int, context: int, new: int, rounds: int, tiling: Tiling | None
) -> tuple[float, Tiling]:
    """Microseconds of one layer, and its tiling."""
    blocks_each = -(-(context + new) // shape.block_size)
    layers = _pools(shape, num_seqs * blocks_each)
    order = torch.randperm(num_seqs * blocks_each, device="cuda", dtype=torch.int32)
    step = PackedStep(
        torch.arange(num_seqs + 1, device="cuda", dtype=torch.int32) * new,
        torch.full((num_seqs,), context, device="cuda", dtype=torch.int32),
        order.view(num_seqs, blocks_each),
        new,
    )
    query = torch.randn(num_seqs * new, shape.num_heads * shape.head_dim, device="cuda", dtype=torch.bfloat16)
    output = torch.empty_like(query)
    processors = torch.cuda.get_device_properties(query.device).multi_processor_count
    workspace = SplitWorkspace.allocate(shape.head_dim, processors, query.device)
    group = shape.num_heads // shape.num_kv_heads
    used = tiling or tiling_for(group=group, head_dim=shape.head_dim, max_query_len=new, element_size=2)

    def run() -> None:
        for keys, values in layers:
            paged_attention(
                query, keys, values, output, step, scale=shape.head_dim**-0.5, workspace=workspace, tiling=used
            )

    return _median_us(run, rounds) / len(layers), used


def _store_us(shape: Shape, num_tokens: int, rounds: int) -> tuple[float, int]:
    """Microseconds of one layer, and the bytes that it reads and writes."""
    layers = _pools(shape, -(-num_tokens // shape.block_size))
    widths = [heads * shape.head_dim for heads in (shape.num_heads, shape.num_kv_heads, shape.num_kv_heads)]
    merged = torch.randn(num_tokens, sum(widths), device="cuda", dtype=torch.bfloat16)
    query, key, value = merged.split(widths, 1)
    slots = torch.randperm(num_tokens, device="cuda", dtype=torch.int32)
    cos, sin = torch.rand(2, num_tokens, shape.head_dim // 2, device="cuda")

    def run() -> None:
        for keys, values in layers:
            rotate_and_store(query, key, value, keys, values, slots, num_heads=shape.num_heads, cos=cos, sin=sin)

    return _median_us(run, rounds) / len(layers), 2 * merged.nbytes


def _pools(shape: Shape, num_blocks: int) -> list[Tensor]:
    """Pools of keys and values, (2, num_blocks, block_size, num_kv_heads, head_dim), of as many layers as are timed."""
    size = (2, num_blocks, shape.block_size, shape.num_kv_heads, shape.head_dim)
    first = torch.randn(size, device="cuda", dtype=torch.bfloat16)
    return [first, *(first.clone() for _ in range(max(1, min(23, POOL_BYTES // first.nbytes))))]


def _median_us(run: Callable[[], None], rounds: int) -> float:
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    times = []
    for _ in range(rounds + 3):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return statistics.median(times[3:])


if __name__ == "__main__":
    main()
