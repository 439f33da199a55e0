"""A line on stderr while requests are computed: tokens per second of prefill and decode, and requests done."""

import sys
import time
from types import TracebackType
from typing import Any, Self

from nanovllm.outputs import EngineStats

__all__ = ["Progress"]


class Progress:
    """`Generating [Prefill: 1234 tok/s, Decode: 567 tok/s] 48/48`, refreshed after each step.

    A rate is the tokens of its kind over the time of the steps that computed any; a mixed step counts for both.
    shown: None shows it where stderr is a terminal.
    """

    def __init__(self, num_requests: int, stats: EngineStats, *, shown: bool | None) -> None:
        self._shown = sys.stderr.isatty() if shown is None else shown
        self._bar: Any = None
        self._num_requests = num_requests
        self._stats = stats
        self._time = time.perf_counter()
        self._tokens = [0, 0]  # prefill, decode
        self._seconds = [0.0, 0.0]

    def __enter__(self) -> Self:
        if self._shown:
            from tqdm import tqdm

            self._bar = tqdm(total=self._num_requests, bar_format="{desc} {n_fmt}/{total_fmt}", desc="Generating")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()

    def update(self, stats: EngineStats, num_done: int) -> None:
        """After a step: the engine's new stats, and how many more requests are done."""
        if self._bar is None:
            return
        now = time.perf_counter()
        before = self._stats
        new = (stats.prefill_tokens - before.prefill_tokens, stats.decode_tokens - before.decode_tokens)
        for kind in range(2):
            if new[kind]:
                self._tokens[kind] += new[kind]
                self._seconds[kind] += now - self._time
        self._stats, self._time = stats, now
        prefill, decode = (t / s if s else 0.0 for t, s in zip(self._tokens, self._seconds, strict=True))
        self._bar.set_description_str(f"Generating [Prefill: {prefill:.0f} tok/s, Decode: {decode:.0f} tok/s]", False)
        self._bar.update(num_done)
