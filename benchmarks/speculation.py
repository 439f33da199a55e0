"""What speculation by prompt lookup is worth: tokens per second with and without it, alternating, medians.

    python benchmarks/speculation.py --model FOLDER [--rounds 3] [--tokens 5]

FOLDER is an export (or checkpoint) with a tokenizer that the real tasks below can be written in; a model of random
weights will do, because a logits processor makes it give the answer that a good model would: the compute, the drafts
and what is accepted of them are those of the real task, only the choice of the token is not the model's. Tasks at batch
1: `code edit` (a source file, to be repeated with a few names changed) and `extraction` (two fields of each record of a
log, as JSON); `free` is the same model left to itself (nothing is forced); `offline-48` is the workload of that name.
"""

import argparse
import json
import re
import statistics
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

import nanovllm.engine.scheduler
from nanovllm import LLM, SamplingParams
from nanovllm.bench.workload import named_workload

MAX_ANSWER = 300  # tokens
Task = tuple[list[int], list[int] | None]  # prompt, the answer that is forced


class Forced:
    """A logits processor that leaves only the next token of a given answer."""

    def __init__(self, answer: list[int]) -> None:
        self._answer = answer

    def __call__(self, output: list[int], logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        logits[self._answer[min(len(output), len(self._answer) - 1)]] = 1e9
        return logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=5, help="drafts of a sequence in one step (default: 5)")
    options = parser.parse_args()
    speculative = {"num_speculative_tokens": options.tokens}
    plain = LLM(options.model, max_model_len=2048)
    drafting = LLM(options.model, max_model_len=2048, speculative_config=speculative)
    tasks = {"code edit": code_edit(plain), "extraction": extraction(plain), "free": free(plain)}
    for name, task in tasks.items():
        report(name, [[run_task(llm, task) for llm in (plain, drafting)] for _ in range(options.rounds)], drafting)
    rounds = [[run_offline(llm, i) for llm in (plain, drafting)] for i in range(options.rounds)]
    report("offline-48", rounds, drafting)


def report(name: str, rounds: list[list[float]], drafting: LLM) -> None:
    without, with_drafts = (statistics.median(column) for column in zip(*rounds, strict=True))
    stats = drafting.stats()
    share = stats.num_accepted_tokens / stats.num_draft_tokens if stats.num_draft_tokens else 0.0
    print(
        f"{name:<11} {without:7.1f} tok/s without, {with_drafts:7.1f} with: {with_drafts / without:.2f} x; "
        f"so far {share:.0%} of {stats.num_draft_tokens} drafts accepted"
    )


def code_edit(llm: LLM) -> Task:
    source = Path(nanovllm.engine.scheduler.__file__).read_text(encoding="utf-8")[2500:4200]
    edited = re.sub(r"\bseq\b", "sequence", source).replace("num_new", "count")
    return encoded(llm, f"Rename seq to sequence and num_new to count.\n\n{source}\n\nEdited:\n\n", edited)


def extraction(llm: LLM) -> Task:
    records = [
        f"2026-03-{day:02} 14:{day + 7:02}:09 user=u{day * 7919 % 1000:03} action=upload "
        f"file=report_{day * 31}.pdf size={day * 1733} ok"
        for day in range(1, 21)
    ]
    answer = [
        json.dumps({"user": re.search(r"user=(\S+)", record)[1], "file": re.search(r"file=(\S+)", record)[1]})
        for record in records
    ]
    return encoded(llm, "Give user and file of each line as JSON.\n\n" + "\n".join(records) + "\n\n", "\n".join(answer))


def free(llm: LLM) -> Task:
    return llm.tokenizer.encode("Write the numbers from one to one hundred: one, two, three, four, five"), None


def encoded(llm: LLM, question: str, answer: str) -> Task:
    tokenizer = llm.tokenizer
    return tokenizer.encode(question), tokenizer.encode(answer, add_special_tokens=False)[:MAX_ANSWER]


def run_task(llm: LLM, task: Task) -> float:
    """Output tokens per second, decode alone; checks that the answer is the one that was forced."""
    prompt, answer = task
    params = SamplingParams(
        temperature=0,
        max_tokens=len(answer or [0] * MAX_ANSWER),
        ignore_eos=True,
        logits_processors=None if answer is None else [Forced(answer)],
    )
    (output,) = llm.generate([prompt], params, progress=False)
    token_ids = output.outputs[0].token_ids
    assert answer is None or token_ids == answer
    assert output.metrics is not None
    return (len(token_ids) - 1) / output.metrics.decode_time_s


def run_offline(llm: LLM, round_index: int) -> float:
    workload = named_workload("offline-48", llm.model_info.vocab_size, round_index=round_index)
    params = [SamplingParams(temperature=0, ignore_eos=True, max_tokens=count) for count in workload.output_lens]
    start = time.perf_counter()
    llm.generate(workload.prompts, params, progress=False)
    return workload.num_output_tokens / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
