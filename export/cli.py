"""The command line of the exporter. Errors of the user's go to stderr as one line; exit codes as shells expect them."""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nanovllm.errors import ConfigError, NanoVLLMError

if TYPE_CHECKING:
    from export.exporter import ExportReport
    from export.verify import Agreement, Verification

__all__ = ["main"]

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT

Row = tuple[str, str]
"""Label and value."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `python -m export` with `argv` (default: the process's own) and returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        return _export_with_optimum(arguments) if arguments.exporter == "optimum" else _export(arguments)
    except NanoVLLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("interrupted; nothing was written.", file=sys.stderr)
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description="Turn a Hugging Face checkpoint into an ONNX model that nanovllm serves. Needs no PyTorch.",
    )
    parser.add_argument("--model", required=True, metavar="ID_OR_DIR", help="checkpoint folder, hub id or tiny-chat")
    parser.add_argument("--output", metavar="DIR", help="folder to write (default: models/NAME-onnx)")
    parser.add_argument(
        "--precision",
        default="fp32",
        metavar="P",
        help="fp32 (default), fp16, bf16: as stored, computed in float32; int8: the fastest on CPU with many requests; "
        "int8w: int8 in blocks, a little closer to float32; int4: the smallest, the fastest for one request",
    )
    parser.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="PATTERN=P[,...]",
        help="layers that get another precision, such as lm_head=fp32 or layers.0=int8 or down_proj=int8",
    )
    parser.add_argument("--no-smoothing", action="store_true", help="leave outlying channels where they are")
    parser.add_argument(
        "--no-sketch",
        action="store_true",
        help="leave out the 4-bit sketch of an int8 head, which takes half its size and makes greedy tokens faster",
    )
    parser.add_argument("--verify", action="store_true", help="compare its answers with float32's and transformers'")
    parser.add_argument("--verify-text", metavar="FILE", help="as --verify, with the perplexity of this text")
    parser.add_argument("--device", default="cpu", help="what the model is to run on: cpu (default)")
    parser.add_argument("--max-length", type=int, metavar="N", help="longest sequence in tokens (default: the model's)")
    parser.add_argument("--block-size", type=int, default=32, metavar="N", help="tokens of a KV block (default: 32)")
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of a hub id")
    parser.add_argument("--random-weights", action="store_true", help="draw the weights: a folder's config, or a shape")
    parser.add_argument("--seed", type=int, metavar="N", help="of the random weights (default: 0)")
    parser.add_argument(
        "--exporter",
        choices=("native", "optimum"),
        default="native",
        help="optimum: Hugging Face's, for families that are not defined here, in an environment of its own",
    )
    parser.add_argument("--optimum-python", metavar="FILE", help="the interpreter of that environment")
    parser.add_argument("--force", action="store_true", help="replace an existing export")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")
    return parser


_NATIVE_ONLY = (
    *(
        "precision",
        "keep",
        "no_smoothing",
        "no_sketch",
        "verify",
        "verify_text",
        "max_length",
        "block_size",
        "random_weights",
    ),
    *("seed", "device"),
)


def _export_with_optimum(arguments: argparse.Namespace) -> int:
    from export.optimum import export_with_optimum

    defaults = _parser().parse_args(["--model", "any"])
    for option in _NATIVE_ONLY:
        if getattr(arguments, option) != getattr(defaults, option):
            raise ConfigError(
                f"--{option.replace('_', '-')} is not for --exporter optimum, which writes fp32 as it is."
            )
    report = export_with_optimum(
        arguments.model,
        arguments.output,
        revision=arguments.revision,
        force=arguments.force,
        python=arguments.optimum_python,
    )
    _print_table(
        [
            ("Model", report.model_name),
            ("Exporter", "optimum"),
            ("Size on disk", f"{report.num_bytes / 2**20:,.1f} MiB"),
            ("Time", f"{report.seconds:.2f} s"),
            ("Folder", str(report.folder)),
        ]
    )
    return 0


def _print_table(rows: Sequence[Row]) -> None:
    width = max(len(label) for label, _ in rows)
    print("\n".join(f"{label:<{width}}  {value}" for label, value in rows))


def _export(arguments: argparse.Namespace) -> int:
    from export import export_model

    if arguments.seed is not None and not arguments.random_weights:
        raise ConfigError(f"--seed {arguments.seed} is for --random-weights; give both or neither.")
    if arguments.optimum_python is not None:
        raise ConfigError("--optimum-python is for --exporter optimum; give both or neither.")

    report = export_model(
        arguments.model,
        arguments.output,
        precision=arguments.precision,
        keep=arguments.keep,
        smoothing=not arguments.no_smoothing,
        sketch=not arguments.no_sketch,
        verify=arguments.verify,
        verify_text=arguments.verify_text,
        device=arguments.device,
        max_model_len=arguments.max_length,
        block_size=arguments.block_size,
        revision=arguments.revision,
        random_weights=arguments.random_weights,
        seed=arguments.seed or 0,
        force=arguments.force,
        progress=not arguments.no_progress,
    )
    peak = report.peak_memory_bytes
    _print_table(
        [
            ("Model", f"{report.model_name} ({report.model_type})"),
            ("Parameters", f"{report.num_parameters:,}"),
            ("Precision", report.precision),
            *_layer_rows(report),
            *([] if report.verification is None else _verification_rows(report.verification)),
            ("Size on disk", f"{report.num_bytes / 2**20:,.1f} MiB"),
            ("Time", f"{report.seconds:.2f} s"),
            ("Peak memory", "unknown" if peak is None else f"{peak / 2**20:,.0f} MiB"),
            ("Folder", str(report.folder)),
        ]
    )
    if report.precision == "fp32":
        print("On CPUs --precision int8 is a quarter of the size and faster; --verify compares its answers.")
    return 0


def _layer_rows(report: "ExportReport") -> list[Row]:
    """For each precision its layers: kind and, where there are several, number."""
    kinds: dict[str, list[str]] = {}
    for kind, counts in report.layers.items():
        for precision, count in counts.items():
            kinds.setdefault(precision, []).append(kind if count == 1 else f"{count} {kind}")
    return [(f"  {precision}", ", ".join(names)) for precision, names in kinds.items()]


def _verification_rows(found: "Verification") -> list[Row]:
    rows = [
        ("Against float32", f"{found.num_positions} tokens of {found.num_prompts} answers"),
        ("  Same answers", f"{found.same_answers:.0%}"),
        *_agreement_rows(found, "float32", found.perplexity_of),
    ]
    theirs = found.transformers
    if theirs is None:
        return [*rows, ("Against transformers", f"not compared: {found.transformers_note}")]
    return [
        *rows,
        ("Against transformers", f"{theirs.version}, at the same tokens"),
        *_agreement_rows(theirs, "transformers", found.perplexity_of),
    ]


def _agreement_rows(found: "Agreement", reference: str, perplexity_of: str) -> list[Row]:
    return [
        ("  Same top token", f"{found.top1_agreement:.2%}"),
        ("  Mean KL", f"{found.mean_kl:.2e} nats"),
        ("  Perplexity", f"{found.perplexity:.4f}, {reference} {found.reference_perplexity:.4f} ({perplexity_of})"),
    ]
