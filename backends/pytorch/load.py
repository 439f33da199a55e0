"""A runner from a checkpoint: picks device and dtype, records the program, puts the parts together."""

from dataclasses import replace

import torch

from backends.pytorch.cpu_attention import CPUAttention
from backends.pytorch.cuda_graphs import CUDAGraphs
from backends.pytorch.decode_graphs import Capture, DecodeGraphs, graph_sizes
from backends.pytorch.device_memory import DEFAULT_UTILIZATION, CUDAMemory, DeviceMemory
from backends.pytorch.device_runner import DeviceRunner
from backends.pytorch.devices import choose_device
from backends.pytorch.linear import MakeLinear, make_linear
from backends.pytorch.model_facts import make_model_info
from backends.pytorch.ops import record
from backends.pytorch.options import TorchOptions
from backends.pytorch.precision import choose_dtype
from backends.pytorch.quantized import make_int4_linear, make_int8_linear
from backends.pytorch.runner import TorchRunner
from backends.pytorch.step_limits import StepLimits
from backends.pytorch.triton_attention import PairRotations, TritonAttention
from backends.pytorch.triton_kernels.device_code import device_code
from backends.pytorch.weights import Weights
from nanovllm.architectures import ArchitectureError, Decoder, UnknownArchitectureError, decoder_from_config
from nanovllm.checkpoint import CONFIG_FILE, Checkpoint
from nanovllm.errors import CheckpointError, UnsupportedModelError

__all__ = ["load_device_runner", "load_runner"]

_MAKE_LINEAR: dict[str | None, MakeLinear] = {None: make_linear, "int8": make_int8_linear, "int4": make_int4_linear}


def load_runner(
    checkpoint: Checkpoint,
    *,
    name: str,
    options: TorchOptions,
    num_threads: int,
    limits: StepLimits,
    max_model_len: int | None = None,
) -> TorchRunner:
    """name: of the model. num_threads: compute threads, a setting of the whole process in torch. limits: how large
    steps are. max_model_len: tokens that the model is built for; None: as many as it allows. Raises `ModelError` and
    `ConfigError`."""
    torch.set_num_threads(num_threads)
    device = choose_device(options)
    if device.type == "cuda":
        return _load_on_cuda(checkpoint, device, name=name, options=options, limits=limits, max_model_len=max_model_len)
    dtype = choose_dtype(options.dtype, checkpoint, device)
    decoder = _decoder(checkpoint, max_model_len)
    attention = CPUAttention(decoder.geometry, dtype, device)
    weights = Weights(checkpoint, dtype, device)
    program, ropes = record(decoder, weights, attention, _MAKE_LINEAR[options.quantization])
    info = make_model_info(
        checkpoint,
        decoder.geometry,
        name=name,
        dtype=str(dtype).removeprefix("torch."),
        device=device.type,
        quantization=options.quantization,
    )
    return TorchRunner(program, ropes, attention, info, device=device, num_threads=num_threads)


def load_device_runner(
    checkpoint: Checkpoint,
    device: torch.device,
    *,
    name: str,
    dtype: str,
    limits: StepLimits,
    max_model_len: int | None = None,
    num_processors: int,
    capture: Capture | None = None,
    memory: DeviceMemory | None = None,
) -> DeviceRunner:
    """A runner with the Triton kernels, which on a CPU need Triton's interpreter. num_processors: of the device.
    capture: makes graphs of decode steps; None: no graphs. memory: of the device, where the runner is to say what is
    left of it for the KV cache. Else as `load_runner`."""
    chosen = choose_dtype(dtype, checkpoint, device)
    decoder = _decoder(checkpoint, max_model_len)
    geometry = decoder.geometry
    attention = TritonAttention(geometry, chosen, device, num_processors=num_processors)
    program, ropes = record(decoder, Weights(checkpoint, chosen, device), attention, make_linear)
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
        PairRotations(ropes, device),
        attention,
        info,
        device=device,
        limits=replace(limits, max_model_len=longest),
        graphs=None if capture is None else DecodeGraphs(graph_sizes(limits.max_num_seqs), capture),
        memory=memory,
    )


def _load_on_cuda(
    checkpoint: Checkpoint,
    device: torch.device,
    *,
    name: str,
    options: TorchOptions,
    limits: StepLimits,
    max_model_len: int | None,
) -> DeviceRunner:
    device_code()  # says what is missing before anything large is read
    torch.cuda.set_device(device)  # Triton launches on the current device
    return load_device_runner(
        checkpoint,
        device,
        name=name,
        dtype=options.dtype,
        limits=limits,
        max_model_len=max_model_len,
        num_processors=torch.cuda.get_device_properties(device).multi_processor_count,
        capture=None if options.enforce_eager else CUDAGraphs(device),
        memory=CUDAMemory(device, options.gpu_memory_utilization or DEFAULT_UTILIZATION),
    )


def _decoder(checkpoint: Checkpoint, max_model_len: int | None) -> Decoder:
    path = checkpoint.folder / CONFIG_FILE
    try:
        return decoder_from_config(checkpoint.config, max_model_len=max_model_len, tensor_names=checkpoint.tensors)
    except UnknownArchitectureError as error:
        raise UnsupportedModelError(f"{path}: {error}") from error
    except ArchitectureError as error:
        raise CheckpointError(f"{path}: {error}") from error
