"""A runner from a checkpoint: picks device and dtype, records the program, puts the parts together."""

import torch

from backends.pytorch.cpu_attention import CPUAttention
from backends.pytorch.linear import MakeLinear, make_linear
from backends.pytorch.model_facts import make_model_info
from backends.pytorch.ops import record
from backends.pytorch.options import TorchOptions
from backends.pytorch.parallel.collective import Collective
from backends.pytorch.parallel.division import geometry_part
from backends.pytorch.precision import choose_dtype
from backends.pytorch.quantized import make_int4_linear, make_int8_linear
from backends.pytorch.runner import TorchRunner
from backends.pytorch.weights import Weights
from nanovllm.architectures import ArchitectureError, Decoder, UnknownArchitectureError, decoder_from_config
from nanovllm.checkpoint import CONFIG_FILE, Checkpoint
from nanovllm.errors import CheckpointError, UnsupportedModelError

__all__ = ["load_runner", "read_decoder"]

_MAKE_LINEAR: dict[str | None, MakeLinear] = {None: make_linear, "int8": make_int8_linear, "int4": make_int4_linear}


def load_runner(
    checkpoint: Checkpoint,
    *,
    name: str,
    options: TorchOptions,
    num_threads: int,
    max_model_len: int | None = None,
    collective: Collective | None = None,
) -> TorchRunner:
    """name: of the model. num_threads: compute threads, a setting of the whole process in torch. max_model_len: tokens
    that the model is built for; None: as many as it allows. collective: the ranks among which the model is divided, if
    it is; the runner, and the sizes in its `model_info`, are those of one rank's part. Raises `ModelError`, and
    `ConfigError` where the model cannot be divided so."""
    torch.set_num_threads(num_threads)
    device = torch.device("cpu")  # the only one so far, whatever "auto" says
    dtype = choose_dtype(options.dtype, checkpoint, device)
    decoder = read_decoder(checkpoint, max_model_len)
    geometry = decoder.geometry if collective is None else geometry_part(decoder.geometry, collective.rank)
    attention = CPUAttention(geometry, dtype, device)
    weights = Weights(checkpoint, dtype, device)
    program, ropes = record(decoder, weights, attention, _MAKE_LINEAR[options.quantization], collective)
    info = make_model_info(
        checkpoint,
        geometry,
        name=name,
        dtype=str(dtype).removeprefix("torch."),
        device=device.type,
        quantization=options.quantization,
    )
    return TorchRunner(program, ropes, attention, info, device=device, num_threads=num_threads)


def read_decoder(checkpoint: Checkpoint, max_model_len: int | None) -> Decoder:
    """What config.json describes. Raises `UnsupportedModelError` or `CheckpointError`."""
    path = checkpoint.folder / CONFIG_FILE
    try:
        return decoder_from_config(checkpoint.config, max_model_len=max_model_len, tensor_names=checkpoint.tensors)
    except UnknownArchitectureError as error:
        raise UnsupportedModelError(f"{path}: {error}") from error
    except ArchitectureError as error:
        raise CheckpointError(f"{path}: {error}") from error
