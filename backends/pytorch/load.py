"""A runner from a checkpoint: picks device and dtype, records the program, puts the parts together."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from backends.pytorch.attention import PagedAttention
from backends.pytorch.cpu_attention import CPUAttention
from backends.pytorch.cuda_graphs import CUDAGraphs
from backends.pytorch.decode_graphs import Capture, DecodeGraphs, graph_sizes
from backends.pytorch.device_memory import DEFAULT_UTILIZATION, CUDAMemory, DeviceMemory
from backends.pytorch.device_runner import DeviceRunner, Rotations
from backends.pytorch.device_sampler import Sample, sample_tokens
from backends.pytorch.devices import choose_device, num_cuda_devices
from backends.pytorch.fusion import Fuse, compiled, unfused
from backends.pytorch.linear import MakeLinear, make_linear
from backends.pytorch.model_facts import make_model_info
from backends.pytorch.ops import record
from backends.pytorch.options import TorchOptions
from backends.pytorch.parallel.collective import Collective
from backends.pytorch.parallel.division import Rank, geometry_part
from backends.pytorch.pointwise import CPUPointwise, PointwiseOps
from backends.pytorch.precision import choose_dtype
from backends.pytorch.quantized import make_int4_linear, make_int8_linear
from backends.pytorch.runner import TorchRunner
from backends.pytorch.step_limits import StepLimits
from backends.pytorch.step_tensors import StepTensors
from backends.pytorch.triton_attention import PairRotations, TritonAttention
from backends.pytorch.triton_kernels import draw_tokens
from backends.pytorch.triton_kernels.device_code import device_code
from backends.pytorch.triton_pointwise import TritonPointwise
from backends.pytorch.weights import Weights
from nanovllm.architectures import Geometry, Rope
from nanovllm.checkpoint import Checkpoint
from nanovllm.checkpoint_decoder import read_decoder
from nanovllm.config import EngineConfig

__all__ = ["DeviceParts", "load_device_runner", "load_runner", "triton_parts"]

_MAKE_LINEAR: dict[str | None, MakeLinear] = {None: make_linear, "int8": make_int8_linear, "int4": make_int4_linear}


def load_runner(
    checkpoint: Checkpoint,
    *,
    name: str,
    options: TorchOptions,
    num_threads: int,
    limits: StepLimits | None = None,
    max_model_len: int | None = None,
    collective: Collective | None = None,
) -> TorchRunner:
    """name: of the model. num_threads: compute threads, a setting of the whole process in torch. limits: how large
    steps are, which devices prepare for; None: as large as a plain `EngineConfig` lets them be. max_model_len: tokens
    that the model is built for; None: as many as it allows. collective: the ranks among which the model is divided, if
    it is; the runner, and the sizes in its `model_info`, are those of one rank's part. Raises `ModelError`, and
    `ConfigError` where the options or the model do not allow it."""
    torch.set_num_threads(num_threads)
    rank = Rank(0, 1) if collective is None else collective.rank
    device = choose_device(options, num_cuda_devices(), rank)
    if device.type == "cuda":
        return load_device_runner(
            checkpoint,
            device,
            _cuda_parts(device, options),
            name=name,
            dtype=options.dtype,
            limits=limits or StepLimits.of(EngineConfig()),
            max_model_len=max_model_len,
            collective=collective,
        )
    dtype = choose_dtype(options.dtype, checkpoint, device)
    decoder = read_decoder(checkpoint, max_model_len)
    geometry = geometry_part(decoder.geometry, rank)
    attention = CPUAttention(geometry, dtype, device)
    weights = Weights(checkpoint, dtype, device)
    pointwise = CPUPointwise(compiled if options.torch_compile else unfused)
    make = _MAKE_LINEAR[options.quantization]
    program, ropes = record(decoder, weights, attention, make, pointwise, collective)
    info = make_model_info(
        checkpoint,
        geometry,
        name=name,
        dtype=str(dtype).removeprefix("torch."),
        device=device.type,
        quantization=options.quantization,
    )
    return TorchRunner(program, ropes, attention, info, device=device, num_threads=num_threads)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceParts:
    """What a device brings. make_attention, make_rotations: of one kind. sample: of plain rows. capture: makes graphs
    of decode steps; None: no graphs. memory: None where the engine sizes the KV cache. pointwise: norms and
    activations."""

    make_attention: Callable[[Geometry, torch.dtype, torch.device], PagedAttention[StepTensors]]
    make_rotations: Callable[[list[Rope], torch.device], Rotations] = PairRotations
    sample: Sample = sample_tokens
    capture: Capture | None = None
    memory: DeviceMemory | None = None
    pointwise: PointwiseOps = field(default_factory=CPUPointwise)


def load_device_runner(
    checkpoint: Checkpoint,
    device: torch.device,
    parts: DeviceParts,
    *,
    name: str,
    dtype: str,
    limits: StepLimits,
    max_model_len: int | None = None,
    collective: Collective | None = None,
) -> DeviceRunner:
    """As `load_runner`, around the parts of any device. dtype: "auto" or a name."""
    chosen = choose_dtype(dtype, checkpoint, device)
    decoder = read_decoder(checkpoint, max_model_len)
    geometry = decoder.geometry if collective is None else geometry_part(decoder.geometry, collective.rank)
    attention = parts.make_attention(geometry, chosen, device)
    weights = Weights(checkpoint, chosen, device)
    program, ropes = record(decoder, weights, attention, make_linear, parts.pointwise, collective)
    info = make_model_info(
        checkpoint,
        geometry,
        name=name,
        dtype=str(chosen).removeprefix("torch."),
        device=device.type,
        quantization=None,
    )
    longest = min(limits.max_model_len, geometry.max_model_len)
    return DeviceRunner(
        program,
        parts.make_rotations(ropes, device),
        attention,
        info,
        device=device,
        limits=replace(limits, max_model_len=longest),
        sample=parts.sample,
        graphs=None if parts.capture is None else DecodeGraphs(graph_sizes(limits.max_num_seqs), parts.capture),
        memory=parts.memory,
        collective=collective,
    )


def _cuda_parts(device: torch.device, options: TorchOptions) -> DeviceParts:
    """Raises `ConfigError` where Triton is missing."""
    device_code()
    torch.cuda.set_device(device)  # Triton launches on the current device
    num_processors = torch.cuda.get_device_properties(device).multi_processor_count
    return triton_parts(
        num_processors,
        fuse=compiled if options.torch_compile else unfused,
        capture=None if options.enforce_eager else CUDAGraphs(device),
        memory=CUDAMemory(device, options.gpu_memory_utilization or DEFAULT_UTILIZATION),
    )


def triton_parts(
    num_processors: int, *, capture: Capture | None = None, memory: DeviceMemory | None = None, fuse: Fuse = unfused
) -> DeviceParts:
    """Those with all the Triton kernels. num_processors: of the device. fuse: of point-wise chains without a kernel."""
    return DeviceParts(
        make_attention=partial(TritonAttention, num_processors=num_processors),
        sample=draw_tokens,
        capture=capture,
        memory=memory,
        pointwise=TritonPointwise(fuse),
    )
