"""`nanovllm::PanelLinear_v1`: the contract of the node, and its body out of stock operators.

Contract. `QuantizedLinear_v1` with its weights in the order in which processors multiply them, so that a kernel copies
nothing: panels of `PANEL` outputs, in each of which the numbers for `STEP` inputs of all its outputs lie together.

    inputs   x             float  (T, K), K a multiple of STEP
             weight        int8   (N / PANEL, K / STEP, PANEL, STEP), N a multiple of PANEL; -127 .. 127. The weight of
                                  output n and input k is at [n // PANEL, k // STEP, n % PANEL, k % STEP]
             weight_scale  float  (N,)
    outputs  output        float  (T, N)
    attributes: none

The output is that of `QuantizedLinear_v1`, bit for bit. Tables whose rows are looked up keep that node, and so do
matrices of other sizes. The body puts the weights back into rows, which ONNX Runtime does once, at load. The name
carries the version: it changes with anything said above.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
from onnx import FunctionProto, helper

from export.nodes import Nodes
from export.quantized_linear import IMPORTS, INPUTS, OUTPUTS, add_product

__all__ = ["OP_TYPE", "PANEL", "STEP", "fits_panels", "in_panels", "panel_linear_function", "panel_shape"]

OP_TYPE = "PanelLinear_v1"
PANEL = 16
"""Outputs of a panel: the sums of 32 bits in a register of 64 bytes."""
STEP = 4
"""Inputs whose products an instruction adds to a sum."""


def panel_linear_function(domain: str) -> FunctionProto:
    """The model-local function."""
    body = Nodes()
    inputs_first = body.add("Transpose", ["weight"], perm=[1, 3, 0, 2])  # (K / STEP, STEP, N / PANEL, PANEL)
    shape = body.add("Concat", [body.ints(-1), body.add("Shape", ["weight_scale"])], axis=0)
    add_product(body, body.add("Reshape", [inputs_first, shape]))  # (K, N)
    return helper.make_function(domain, OP_TYPE, INPUTS, OUTPUTS, body.protos, IMPORTS)


def fits_panels(num_out: int, num_in: int) -> bool:
    """Whether a matrix has whole panels and steps."""
    return num_out % PANEL == 0 and num_in % STEP == 0


def panel_shape(num_out: int, num_in: int) -> tuple[int, int, int, int]:
    """Shape of a matrix in panels."""
    return num_out // PANEL, num_in // STEP, PANEL, STEP


def in_panels(slices: Iterable[npt.NDArray[np.int8]]) -> Iterator[npt.NDArray[np.int8]]:
    """Consecutive row slices of a matrix that fits, (rows, K), as consecutive slices of its panels."""
    rest: list[npt.NDArray[np.int8]] = []
    for rows in slices:
        together = np.concatenate([*rest, rows])
        num_whole = len(together) // PANEL * PANEL
        rest = [together[num_whole:]]
        if num_whole:
            panels = together[:num_whole].reshape(-1, PANEL, rows.shape[1] // STEP, STEP)
            yield panels.transpose(0, 2, 1, 3)
