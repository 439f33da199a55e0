"""Where ranks of torch.distributed find each other: a store that rank 0 serves on this machine, and on no network.

torch's own server of that kind would listen on every interface, to anybody. So the socket is bound here.
"""

import socket
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from backends.pytorch.parallel.division import Rank

__all__ = ["open_store"]

_LOOPBACK = "127.0.0.1"
_PORT_FILE = "port"
_RETRY_S = 0.005


def open_store(rank: Rank, folder: Path, timeout: timedelta) -> Any:
    """A `torch.distributed.Store`: this rank's end of the one that all ranks share which are given this folder.

    Once all have theirs, the folder may be removed. Raises RuntimeError where rank 0 does not open it in time.
    """
    listener = None if rank.number else socket.create_server((_LOOPBACK, 0))
    port = _read_port(folder / _PORT_FILE, timeout) if listener is None else listener.getsockname()[1]
    store = dist.TCPStore(  # type: ignore[attr-defined]
        _LOOPBACK,
        port,
        rank.size,
        is_master=listener is not None,
        timeout=timeout,
        wait_for_workers=False,
        master_listen_fd=None if listener is None else listener.detach(),
    )
    if rank.number == 0:
        written = folder / f"{_PORT_FILE}.new"
        written.write_text(str(port))
        written.rename(folder / _PORT_FILE)  # so that nobody reads half of it
    return store


def _read_port(path: Path, timeout: timedelta) -> int:
    deadline = time.monotonic() + timeout.total_seconds()
    while not path.exists():
        if time.monotonic() > deadline:
            raise RuntimeError(f"rank 0 has not opened its store: there is no {path}")
        time.sleep(_RETRY_S)
    return int(path.read_text())
