"""A program: compiles every kernel for a CUDA processor without having one, and prints what became of it.

    python compile_kernels.py 90

Launches go the usual way up to the point where Triton would compile; there a hook takes the launch's own signature,
constants and options and compiles them for the given compute capability. One line a kernel, as JSON.
"""

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import driver

from backends.pytorch.attention import HeadGains
from backends.pytorch.triton_kernels import (
    PackedStep,
    SplitWorkspace,
    add_rms_norm,
    draw_tokens,
    gate,
    paged_attention,
    rms_norm,
    rotate_and_store,
)
from nanovllm.architectures import Activation


class Device:
    """What Triton asks of a driver before it compiles."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class Compiler:
    """A launch hook that compiles and does not launch."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target
        self.case = ""

    def __call__(self, *, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        source = ASTSource(fn.jit_function, compile["signature"], compile["constants"], compile["configs"][0])
        options = {name: compile[name] for name in ("num_warps", "num_stages")}
        compiled = triton.compile(source, target=self.target, options=options)
        described = {
            "kernel": compiled.metadata.name,
            "case": self.case,
            "target": compiled.asm["ptx"].split(".target ")[1].split()[0],
            "shared_bytes": compiled.metadata.shared,
            "spilled_bytes": _spilled_bytes(compiled.asm["cubin"]),
            "has_async_copies": "cp.async" in compiled.asm["ptx"],
        }
        print(json.dumps(described), flush=True)
        return True


def _spilled_bytes(cubin: bytes) -> int:
    """The stack of each thread, which kernels without arrays of their own have for registers only."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(re.findall(r"STACK:(\d+)", printed)[0])


def attend(
    compiler: Compiler,
    head_dim: int,
    dtype: torch.dtype,
    new: int,
    *,
    group: int = 7,
    split: bool = False,
    **spec: Any,
) -> None:
    """One launch of attention, of 3 sequences with `new` tokens each."""
    compiler.case = f"head {head_dim}, group {group}, {dtype}, {new} new, split {split}, {spec}"
    pools = torch.zeros(2, 8, 16, 2, head_dim, dtype=dtype)
    query = torch.zeros(3 * new, 2 * group * head_dim, dtype=dtype)
    step = PackedStep(torch.zeros(4).int(), torch.zeros(3).int(), torch.zeros(3, 64).int(), new)
    if new == 1:
        step = replace(step, order=torch.zeros(3, dtype=torch.int64))
    workspace = SplitWorkspace.allocate(head_dim, 132, query.device, least_keys=16) if split else None
    paged_attention(query, *pools, torch.zeros_like(query), step, scale=0.1, workspace=workspace, **spec)


def store(
    compiler: Compiler, head_dim: int, rotary_dim: int, *, interleaved: bool = False, normed: bool = False
) -> None:
    """One launch of norms, the rotation and the write, of 3 tokens."""
    compiler.case = f"head {head_dim}, rotary {rotary_dim}, interleaved {interleaved}, normed {normed}"
    merged = torch.zeros(3, 18 * head_dim, dtype=torch.bfloat16)
    query, key, value = merged.split([14 * head_dim, 2 * head_dim, 2 * head_dim], 1)
    pools = torch.zeros(2, 8, 16, 2, head_dim, dtype=torch.bfloat16)
    cos, sin = torch.zeros(2, 3, rotary_dim // 2) if rotary_dim else (None, None)
    slots = torch.zeros(3).int()
    gains = HeadGains(*torch.zeros(2, head_dim), 1e-6) if normed else None
    rotate_and_store(
        query, key, value, *pools, slots, num_heads=14, cos=cos, sin=sin, interleaved=interleaved, gains=gains
    )


def norms(compiler: Compiler, hidden_size: int, head_dim: int) -> None:
    """One launch of each norm: of a sum, and of 16 heads that are columns of a product."""
    compiler.case = f"hidden {hidden_size}"
    rows = torch.zeros(2, 3, hidden_size, dtype=torch.bfloat16)
    add_rms_norm(rows[0], rows[1], torch.zeros(hidden_size), 1e-6)
    compiler.case = f"16 heads of {head_dim}"
    columns = torch.zeros(3, 18 * head_dim, dtype=torch.bfloat16)[:, : 16 * head_dim]
    rms_norm(columns, torch.zeros(head_dim), 1e-6, groups=16)


def gated(compiler: Compiler, features: int, kind: Activation) -> None:
    """One launch on the two halves of a product."""
    compiler.case = f"{kind} of {features}"
    gate(*torch.zeros(3, 2 * features, dtype=torch.bfloat16).chunk(2, 1), kind)


def sample(compiler: Compiler, vocab_size: int, dtype: torch.dtype) -> None:
    """One launch of both kernels of the sampler, of 3 rows."""
    compiler.case = f"vocabulary of {vocab_size}, {dtype}"
    draw_tokens(torch.zeros(3, vocab_size, dtype=dtype), torch.zeros(5, 3, dtype=torch.float64))


def main() -> None:
    device = Device(int(sys.argv[1]))
    driver.set_active(device)
    torch.set_default_device("meta")  # tensors without memory, and not of the kind that are interpreted
    compiler = Compiler(device.target)
    triton.knobs.runtime.jit_cache_hook = compiler
    for new in (1, 256):
        attend(compiler, 64, torch.bfloat16, new)
        attend(compiler, 256, torch.float32, new)
        attend(compiler, 80, torch.float16, new, window=100, softcap=20.0)
        attend(compiler, 64, torch.bfloat16, new, group=71)
    attend(compiler, 128, torch.bfloat16, 1, split=True)
    attend(compiler, 128, torch.bfloat16, 256)
    store(compiler, 128, 128)
    store(compiler, 128, 128, normed=True)
    store(compiler, 80, 32, interleaved=True)
    store(compiler, 64, 0)
    norms(compiler, 1024, 128)
    norms(compiler, 8192, 80)
    gated(compiler, 3072, "silu")
    gated(compiler, 4864, "gelu")
    gated(compiler, 14336, "gelu_tanh")
    sample(compiler, 151_936, torch.bfloat16)
    sample(compiler, 262_144, torch.float16)
    sample(compiler, 97, torch.float32)


if __name__ == "__main__":
    main()
