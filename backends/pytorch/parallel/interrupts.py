"""Ctrl-C in the middle of a step waits for the step's end: ranks that were left there could not go on together."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["interrupts_after"]


@contextmanager
def interrupts_after() -> Iterator[None]:
    """A first SIGINT within is handled at the end, as it would have been at once; a second one is not put off.

    Only the main thread gets any; in others nothing is changed.
    """
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield
        return
    caught: list[tuple[int, FrameType | None]] = []

    def put_off(number: int, frame: FrameType | None) -> None:
        if caught:
            previous(number, frame)
        caught.append((number, frame))

    signal.signal(signal.SIGINT, put_off)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if len(caught) == 1:
            previous(*caught[0])
