"""For every test: no network, no deadlines of Hypothesis, since the machine is shared, and Ctrl-C as in a terminal."""

import logging
import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Models here are so small that a second thread of torch's only waits, spinning; a test that wants threads says so.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("nanovllm", deadline=None, print_blob=True)
settings.load_profile("nanovllm")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts its background jobs so, and a program under test would inherit it and never see Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _log_as_it_was() -> Iterator[None]:
    """A command that a test runs in this process sends the log to the test's own stderr, which ends with it."""
    loggers = [logging.getLogger(name) for name in ("nanovllm", "uvicorn", "uvicorn.access")]
    before = [(logger.handlers[:], logger.level, logger.propagate, logger.disabled) for logger in loggers]
    yield
    for logger, (handlers, level, propagate, disabled) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate, logger.disabled = handlers, propagate, disabled
        logger.setLevel(level)
