"""An engine that computes nothing: it waits and answers with zeros. It writes a line into `journal` for each round.

model: what it is called there. delay_s: a round's duration. short: tokens that it owes the first request. spin: whether
a thread of it computes for ever. fail: what it dies of while it loads.
"""

import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks" / "peers"))

from round_server import Engine, TokenIds, serve


def load(model: str, options: dict[str, Any]) -> Engine:
    if options["fail"]:
        raise RuntimeError(options["fail"])
    print("noise on stdout")
    if options["spin"]:
        threading.Thread(target=spin, daemon=True).start()
    name = Path(model).name

    def run(prompts: TokenIds, output_lens: list[int]) -> TokenIds:
        begin = time.process_time()
        time.sleep(options["delay_s"])
        with Path(options["journal"]).open("a") as journal:
            journal.write(f"{name} {prompts[0][0]} {begin} {time.process_time()}\n")
        return [[0] * (length - options["short"] * (i == 0)) for i, length in enumerate(output_lens)]

    return Engine("Fake", "1.0", run)


def spin() -> None:
    while True:
        pass


serve(load, {"threads": 1, "delay_s": 0.0, "short": 0, "spin": 0, "fail": "", "journal": "journal"})
