"""A quantized product on CPU, one node: the stock body, or another library, against the kernel, alternating, medians.

    python benchmarks/kernel_linear.py [--precision int8] [--threads 2] [--rounds 15] [--rows 1 48] [--only 896x9728]
                                       [--library NEW.so] [--against OLD.so] [--against-precision int8-rows]

int8 is the layer whose weights lie in panels, int8-rows the one whose weights lie in rows, as a head's do. Shapes are
those of Qwen2-0.5B: qkv, output, gate-up, down and the head. Small layers are repeated with other weights until they
fill 128 MiB, so that weights come from memory as they do in a model, not from a cache that one layer would fit into.
Prints giga-operations a second, two for each weight and row, and for a single row the bandwidth at which weights were
read. On one thread its processor time is taken, which other work on the machine disturbs less. Between the two is a
pause, in which the threads of the one that ran stop waiting for work, and a run that is not counted.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
from onnx import FunctionProto, TensorProto, helper, numpy_helper

from backends.ort.kernels.library import find_library
from export.block_linear import block_linear_function
from export.panel_linear import panel_linear_function, panel_shape
from export.quantize import BLOCK, num_blocks
from export.quantized_linear import quantized_linear_function

DOMAIN = "nanovllm"
SHAPES = ((896, 1152), (896, 896), (896, 9728), (4864, 896), (896, 151_936))  # features in and out
NUM_ROWS = (1, 4, 16, 48, 128, 512)
WEIGHT_BYTES = 128 << 20
PAUSE_S = 0.03
MAX_ROWS_OF_HEAD = 128  # more would need gigabytes of output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=LAYERS, default="int8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rows", type=int, nargs="*", default=NUM_ROWS)
    parser.add_argument("--only", default="", help="shapes whose name contains this")
    parser.add_argument("--library", type=Path, default=None, help="another kernel library")
    parser.add_argument("--against", type=Path, default=None, help="a kernel library in place of the stock body")
    parser.add_argument("--against-precision", choices=LAYERS, help="compare with the kernel of another format")
    options = parser.parse_args()
    library = options.library or find_library()
    if library is None:
        raise SystemExit("no kernel library is built: reinstall the package where a C++ compiler is.")
    other = LAYERS[options.against_precision or options.precision]
    against = options.against or (library if options.against_precision else None)
    first = "before GOP/s" if against else "stock GOP/s"
    print(f"{'':<14}{'rows':>6}{first:>14}{'kernel GOP/s':>14}{'ratio':>8}{'kernel GB/s':>13}")
    for num_in, num_out in SHAPES:
        name = f"{num_in}x{num_out}"
        if options.only not in name:
            continue
        layer = LAYERS[options.precision]
        layer_bytes = sum(array.nbytes for array in layer.weights(np.random.default_rng(0), num_in, num_out))
        num_layers = max(1, WEIGHT_BYTES // layer_bytes)
        clock = time.thread_time if options.threads == 1 else time.perf_counter
        sessions = [
            open_layers(kind, num_in, num_out, num_layers, path, options.threads)
            for kind, path in ((other, against), (layer, library))
        ]
        for num_rows in options.rows:
            if num_out > 100_000 and num_rows > MAX_ROWS_OF_HEAD:
                continue
            stock, kernel = measure(sessions, num_rows, num_in, options.rounds, clock)
            work = num_layers * num_in * num_out
            rates = [2e-9 * work * num_rows / seconds for seconds in (stock, kernel)]
            bandwidth = f"{1e-9 * layer_bytes * num_layers / kernel:13.1f}" if num_rows == 1 else ""
            print(
                f"{name:<14}{num_rows:>6}{rates[0]:14.0f}{rates[1]:14.0f}{stock / kernel:8.2f}{bandwidth}", flush=True
            )


@dataclass(frozen=True)
class Layer:
    """A kind of node. weights: its constant inputs, at random. bits: attribute of BlockLinear, else 0."""

    function: FunctionProto
    weights: Callable[[np.random.Generator, int, int], list[np.ndarray]]
    bits: int = 0


def row_weights(rng: np.random.Generator, num_in: int, num_out: int) -> list[np.ndarray]:
    return [rng.integers(-127, 128, (num_out, num_in), np.int8), rng.uniform(0, 0.01, num_out).astype(np.float32)]


def panel_weights(rng: np.random.Generator, num_in: int, num_out: int) -> list[np.ndarray]:
    weight, scale = row_weights(rng, num_in, num_out)
    return [weight.reshape(panel_shape(num_out, num_in)), scale]


def block_weights(bits: int, rng: np.random.Generator, num_in: int, num_out: int) -> list[np.ndarray]:
    shape = num_out, num_blocks(num_in)
    integers = rng.integers(0, 256, (*shape, BLOCK * bits // 8), np.uint8)
    return [integers, rng.uniform(0, 0.01, shape).astype(np.float32)]


LAYERS = {
    "int8": Layer(panel_linear_function(DOMAIN), panel_weights),
    "int8-rows": Layer(quantized_linear_function(DOMAIN), row_weights),
    "int8w": Layer(block_linear_function(DOMAIN), partial(block_weights, 8), bits=8),
    "int4": Layer(block_linear_function(DOMAIN), partial(block_weights, 4), bits=4),
}


def open_layers(
    layer: Layer, num_in: int, num_out: int, num_layers: int, library: Path | None, num_threads: int
) -> onnxruntime.InferenceSession:
    """Layers that share their input, each with weights of its own."""
    rng = np.random.default_rng(0)
    nodes, weights, outputs = [], [], []
    attributes = {"N": num_out, "K": num_in, "bits": layer.bits} if layer.bits else {}
    for i in range(num_layers):
        arrays = layer.weights(rng, num_in, num_out)
        names = [f"w{i}.{place}" for place in range(len(arrays))]
        weights += [numpy_helper.from_array(array, name) for array, name in zip(arrays, names, strict=True)]
        inputs, output = ["x", *names], f"output{i}"
        nodes.append(helper.make_node(layer.function.name, inputs, [output], domain=DOMAIN, **attributes))
        outputs.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, ["rows", num_out]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", num_in])
    model = helper.make_model(
        helper.make_graph(nodes, "layers", [x], outputs, weights),
        functions=[layer.function],
        opset_imports=[*layer.function.opset_import, helper.make_opsetid(DOMAIN, 1)],
        ir_version=11,
    )
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = num_threads
    settings.inter_op_num_threads = 1
    settings.enable_mem_pattern = False
    if library is not None:
        settings.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])


def measure(
    sessions: Sequence[onnxruntime.InferenceSession],
    num_rows: int,
    num_in: int,
    num_rounds: int,
    clock: Callable[[], float],
) -> list[float]:
    """Median seconds of a run of each session."""
    x = np.random.default_rng(1).standard_normal((num_rows, num_in)).astype(np.float32)
    runs = [bound_run(session, x) for session in sessions]
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(num_rounds):
        for run, taken in zip(runs, times, strict=True):
            time.sleep(PAUSE_S)
            run()
            start = clock()
            run()
            taken.append(clock() - start)
    return [statistics.median(taken) for taken in times]


def bound_run(session: onnxruntime.InferenceSession, x: np.ndarray) -> Callable[[], None]:
    """A run without copies in Python: all layers write to one buffer."""
    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    outputs = session.get_outputs()
    buffer = np.empty((len(x), outputs[0].shape[1]), np.float32)
    for output in outputs:
        binding.bind_output(output.name, "cpu", 0, np.float32, buffer.shape, buffer.ctypes.data)

    def run() -> None:
        session.run_with_iobinding(binding)
        assert buffer is not None  # kept for as long as the run

    return run


if __name__ == "__main__":
    main()
