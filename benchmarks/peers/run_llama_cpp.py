"""llama.cpp's server, from a GGUF file. `server` is the path of llama-server; it runs as a child of this process."""

import atexit
import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from round_server import Engine, TokenIds, serve


def load(model: str, options: dict[str, Any]) -> Engine:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    slots, threads = options["slots"], str(options["threads"])
    command = [options["server"], "-m", model, "--host", "127.0.0.1", "--port", str(port), "--no-webui"]
    command += ["-t", threads, "-tb", threads, "-np", str(slots), "-c", str(slots * options["slot_tokens"])]
    command += ["-b", str(options["batch"]), "-ub", str(options["batch"])]
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    atexit.register(server.terminate)
    while not _is_ready(port):
        if server.poll() is not None:
            raise RuntimeError(f"llama-server ended with {server.returncode}")
        time.sleep(0.1)

    def run(prompts: TokenIds, output_lens: list[int]) -> TokenIds:
        with ThreadPoolExecutor(len(prompts)) as pool:
            return list(pool.map(lambda ids, length: _complete(port, ids, length), prompts, output_lens))

    version = subprocess.run([options["server"], "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"version: (.+)", version.stdout + version.stderr)
    return Engine("llama.cpp", found.group(1) if found else "unknown", run, lambda: _peak_memory(server.pid))


def _is_ready(port: int) -> bool:
    with contextlib.suppress(OSError):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    return False


def _complete(port: int, prompt: list[int], length: int) -> list[int]:
    body = {"prompt": prompt, "n_predict": length, "ignore_eos": True, "temperature": 0, "return_tokens": True}
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/completion", json.dumps({**body, "cache_prompt": False}))
    return json.loads(connection.getresponse().read())["tokens"]


def _peak_memory(pid: int) -> int:
    """Linux alone tells it of another process; 0 elsewhere."""
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


serve(
    load,
    {
        "server": os.environ.get("LLAMA_SERVER", "llama-server"),
        "threads": 2,
        "slots": 48,
        "slot_tokens": 2304,
        "batch": 512,
    },
)
