"""A server in a process of its own, whose engine makes as many steps as it is told to on stdin, a number a line.

python held_server.py SHUTDOWN_TIMEOUT_S
"""

import asyncio
import sys
import threading

from mock_llms import HeldRunner, mock_llm

from nanovllm.server.run import open_socket, run_server
from nanovllm.server.settings import ServerSettings


def main() -> None:
    runner = HeldRunner()

    def let_steps() -> None:
        for line in sys.stdin:
            runner.let(int(line))

    threading.Thread(target=let_steps, daemon=True).start()
    settings = ServerSettings(port=0, shutdown_timeout_s=float(sys.argv[1]))
    with open_socket(settings.host, settings.port) as sock:
        asyncio.run(run_server(mock_llm(runner), settings, sock))


if __name__ == "__main__":
    main()
