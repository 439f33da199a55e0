"""A step that runs on a device: its tokens are on their way to the host.

In: copies that are under way, and which rows the host has to sample itself. Out: `StepOutput`.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from backends.pytorch.arrivals import Arrival
from nanovllm.batch import Batch, Int64Array, StepOutput
from nanovllm.errors import BackendError
from nanovllm.sampler import Draw, sample_others

__all__ = ["DeviceStep"]


class DeviceStep:
    """A `PendingStep`.

    is_chosen: (num_logits,), rows that the device has sampled. arrival: their token ids, int64, and the logits of the
    other rows, float32; None where no logits were wanted. keep: told the output once the host has sampled rows.
    """

    def __init__(
        self,
        batch: Batch,
        is_chosen: npt.NDArray[np.bool_],
        arrival: Arrival | None,
        draw: Draw,
        keep: Callable[[StepOutput], None],
    ) -> None:
        self._batch = batch
        self._is_chosen = is_chosen
        self._arrival = arrival
        self._draw = draw
        self._keep = keep
        self._output: StepOutput | None = None
        self._error: BackendError | None = None

    def settle(self) -> None:
        """Samples what the host has to sample, if that has not happened: the next step may build on these tokens.
        Waits for the device only where there is something to sample."""
        if not self._is_chosen.all():
            self._finish()

    def result(self) -> StepOutput:
        """Waits for the step. Raises `BackendError`."""
        self._finish()
        if self._error is not None:
            raise self._error
        assert self._output is not None
        return self._output

    def _finish(self) -> None:
        if self._output is not None or self._error is not None:
            return
        try:
            self._output = self._sample()
            if not self._is_chosen.all():
                self._keep(self._output)
        except BackendError as error:
            self._error = error
        except RuntimeError as error:
            self._error = BackendError(f"torch failed in a step of {self._batch.num_tokens} tokens: {error}")

    def _sample(self) -> StepOutput:
        batch = self._batch
        token_ids: Int64Array = np.zeros(batch.num_logits, np.int64)
        others = np.empty((0, 0), np.float32)
        if self._arrival is not None:
            token_ids[self._is_chosen], others = self._arrival.wait()
        return sample_others(token_ids, self._is_chosen, others, batch.sampling, batch.logits_start, self._draw)
