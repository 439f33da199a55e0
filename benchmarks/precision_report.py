"""What each precision costs and gains: size, export, load, speed of steps, and answers compared with float32.

    python benchmarks/precision_report.py                      Qwen2-0.5B's shape with random weights: size and speed
    python benchmarks/precision_report.py --shape Qwen/Qwen2-1.5B-Instruct
    python benchmarks/precision_report.py --accuracy tiny-chat a real model: agreement with float32
    PYTHONPATH=. python benchmarks/precision_report.py --held-out 480    tiny-chat on questions that it never saw

Each precision is exported and measured in a process of its own, through the runner that the engine uses. Speeds are the
best of several runs, since other work on the machine can only slow them down.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

CONTEXT = 200
PREFILL = 512
DECODES = (1, 48)
BLOCK_SIZE = 32
MAX_MODEL_LEN = 4096
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int8w", "int4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="Qwen/Qwen2-0.5B-Instruct", help="one of nanovllm.known_shapes")
    parser.add_argument("--accuracy", metavar="MODEL", help="compare this model's precisions with float32 instead")
    parser.add_argument("--held-out", type=int, metavar="N", help="ask tiny-chat N held-out questions (needs torch)")
    parser.add_argument("--precision", nargs="*", default=PRECISIONS)
    parser.add_argument("--keep", default="", help="as for python -m export")
    parser.add_argument("--one", metavar="DIR", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        (precision,) = arguments.precision
        print(json.dumps(measure(arguments.shape, precision, arguments.keep, Path(arguments.one))))
    elif arguments.held_out:
        report_held_out(arguments.held_out, arguments.precision)
    elif arguments.accuracy:
        report_accuracy(arguments.accuracy, arguments.precision, arguments.keep)
    else:
        report_speed(arguments.shape, arguments.precision, arguments.keep)


def report_speed(shape: str, precisions: Sequence[str], keep: str) -> None:
    columns = ("MiB", "export s", "export MiB", "load s", "load MiB", "decode 1", "decode 48", "prefill tok/s")
    print(f"{shape}, random weights; decode in ms at context {CONTEXT}; prefill of {PREFILL} tokens")
    print("".join(f"{column:>14}" for column in ("precision", *columns)), flush=True)
    for precision in precisions:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--one", folder, "--shape", shape]
            command += ["--precision", precision, "--keep", keep]
            row = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        print(f"{precision:>14}" + "".join(f"{row[column]:14.1f}" for column in columns), flush=True)


def report_accuracy(model: str, precisions: Sequence[str], keep: str) -> None:
    from export import export_model

    print(f"{model}: agreement with float32 along its own greedy answers")
    columns = ("MiB", "positions", "same top token", "same answers", "mean KL", "perplexity", "float32's")
    print("".join(f"{column:>16}" for column in ("precision", *columns)), flush=True)
    for precision in precisions:
        with tempfile.TemporaryDirectory() as folder:
            report = export_model(
                model, Path(folder, "export"), precision=precision, keep=[keep], verify=True, progress=False
            )
        found = report.verification
        assert found is not None
        cells = (
            *(f"{report.num_bytes / 2**20:.1f}", f"{found.num_positions}", f"{found.top1_agreement:.2%}"),
            *(f"{found.same_answers:.0%}", f"{found.mean_kl:.1e}"),
            *(f"{found.perplexity:.4f}", f"{found.reference_perplexity:.4f}"),
        )
        print("".join(f"{cell:>16}" for cell in (precision, *cells)), flush=True)


def report_held_out(num_questions: int, precisions: Sequence[str]) -> None:
    from export import export_model
    from export.graph_session import GraphSession
    from export.verify import Comparison, compare_logits
    from models.tiny_chat_recipe.evaluate import held_out_examples
    from nanovllm import LLM, SamplingParams
    from nanovllm.model_info import ModelInfo

    examples = [example for part in held_out_examples().values() for example in part]
    examples = examples[:: max(1, len(examples) // num_questions)]
    questions = [[{"role": m.role, "content": m.content} for m in example.messages] for example in examples]
    greedy = SamplingParams(temperature=0, max_tokens=200)
    print(
        f"tiny-chat, {len(examples)} held-out questions; the answers that float32 gives are what the others should give"
    )
    columns = ("right", "same answers", "same where right", "same top token", "mean KL")
    print("".join(f"{column:>18}" for column in ("precision", *columns)), flush=True)
    with tempfile.TemporaryDirectory() as root:
        float32: Any = None
        for precision in ("fp32", *(name for name in precisions if name != "fp32")):
            folder = export_model("tiny-chat", Path(root, precision), precision=precision, progress=False).folder
            with LLM(str(folder)) as llm:
                answers = [output.outputs[0] for output in llm.chat(questions, greedy)]
                prompts = [llm.tokenizer.encode(llm.render_chat(question)) for question in questions]
            session = GraphSession(folder, ModelInfo.load(folder), 1024)
            float32 = float32 or (answers, session)
            total = Comparison(0, 0, 0.0, 0.0, 0.0)
            for prompt, answer in zip(prompts, float32[0], strict=True):
                ids = [*prompt, *answer.token_ids]
                mine, theirs = (one.logits(ids[:-1], first=len(prompt) - 1) for one in (session, float32[1]))
                total += compare_logits(mine, theirs, ids[len(prompt) :])
            same = [mine.token_ids == other.token_ids for mine, other in zip(answers, float32[0], strict=True)]
            right = [a.text == example.answer for a, example in zip(float32[0], examples, strict=True)]
            cells = (
                f"{sum(a.text == example.answer for a, example in zip(answers, examples, strict=True))}",
                f"{sum(same)}",
                f"{sum(s and r for s, r in zip(same, right, strict=True))} of {sum(right)}",
                f"{total.num_same / total.num_positions:.2%}",
                f"{total.divergence / total.num_positions:.1e}",
            )
            print("".join(f"{cell:>18}" for cell in (precision, *cells)), flush=True)


def measure(shape: str, precision: str, keep: str, folder: Path) -> dict[str, float]:
    from export import export_model
    from nanovllm.model_info import ModelInfo

    report = export_model(
        shape,
        folder,
        precision=precision,
        keep=[keep],
        random_weights=True,
        max_model_len=MAX_MODEL_LEN,
        block_size=BLOCK_SIZE,
        progress=False,
    )
    row: dict[str, float] = {"export s": report.seconds, "export MiB": (report.peak_memory_bytes or 0) / 2**20}
    row["MiB"] = report.num_bytes / 2**20
    before, start = resident_mib(), time.perf_counter()
    runner = load_runner(folder)
    row["load s"], row["load MiB"] = time.perf_counter() - start, resident_mib() - before
    blocks = -(-(CONTEXT + 1) // BLOCK_SIZE)
    runner.allocate_kv_cache(max(max(DECODES) * blocks, PREFILL // BLOCK_SIZE), BLOCK_SIZE)
    vocab_size = ModelInfo.load(folder).vocab_size
    for num_seqs in DECODES:
        batch = make_batch(num_seqs, 1, CONTEXT, vocab_size)
        row[f"decode {num_seqs}"] = 1e3 * best_time(lambda batch=batch: runner.forward(batch), 40)
    batch = make_batch(1, PREFILL, 0, vocab_size)
    row["prefill tok/s"] = PREFILL / best_time(lambda: runner.forward(batch), 8)
    return row


def load_runner(folder: Path) -> Any:
    from backends.ort.plugin import nanovllm_model_runners
    from nanovllm.config import EngineConfig
    from nanovllm.plugins import ModelSource

    (plugin,) = nanovllm_model_runners()
    return plugin.factory(ModelSource(str(folder), folder), EngineConfig(model=str(folder)))


def make_batch(num_seqs: int, num_tokens: int, context: int, vocab_size: int) -> Any:
    """A step of num_tokens of each sequence after `context` tokens, of which the last one's logits are wanted."""
    from nanovllm.batch import SAMPLING_ROW, Batch, SamplingBatch

    random = np.random.default_rng(0)
    blocks = -(-(context + num_tokens) // BLOCK_SIZE)
    tables = random.permutation(num_seqs * blocks).astype(np.int32).reshape(num_seqs, blocks)
    positions = context + np.arange(num_tokens)
    slots = tables[:, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
    return Batch(
        seq_ids=list(range(num_seqs)),
        released_seq_ids=[],
        token_ids=random.integers(0, vocab_size, num_seqs * num_tokens),
        positions=np.tile(positions, num_seqs),
        query_start=np.arange(num_seqs + 1, dtype=np.int32) * num_tokens,
        context_lens=np.full(num_seqs, context, np.int32),
        block_tables=tables,
        slot_mapping=slots.reshape(-1).astype(np.int32),
        logits_indices=np.arange(1, num_seqs + 1, dtype=np.int32) * num_tokens - 1,
        logits_start=np.arange(num_seqs + 1, dtype=np.int32),
        adapter_ids=np.zeros(num_seqs, np.int32),
        sampling=SamplingBatch(np.zeros(num_seqs, SAMPLING_ROW), np.zeros(num_seqs, np.int64)),
    )


def best_time(call: Callable[[], object], num_runs: int) -> float:
    """Seconds of the fastest of some runs, after a first one that does not count."""
    call()
    times = []
    for _ in range(num_runs):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def resident_mib() -> float:
    """Memory of this process now; 0 where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:")), 0.0)


if __name__ == "__main__":
    main()
