"""The command line of the exporter. Errors of the user's go to stderr as one line; exit codes as shells expect them."""

import argparse
import sys
from collections.abc import Sequence

from nanovllm.errors import NanoVLLMError

__all__ = ["main"]

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `python -m export` with `argv` (default: the process's own) and returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        return _export(arguments)
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
    parser.add_argument("--precision", default="fp32", help="of weights and arithmetic: fp32 (default)")
    parser.add_argument("--max-length", type=int, metavar="N", help="longest sequence in tokens (default: the model's)")
    parser.add_argument("--block-size", type=int, default=32, metavar="N", help="tokens of a KV block (default: 32)")
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of a hub id")
    parser.add_argument("--force", action="store_true", help="replace an existing export")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")
    return parser


def _export(arguments: argparse.Namespace) -> int:
    from export import export_model

    report = export_model(
        arguments.model,
        arguments.output,
        precision=arguments.precision,
        max_model_len=arguments.max_length,
        block_size=arguments.block_size,
        revision=arguments.revision,
        force=arguments.force,
        progress=not arguments.no_progress,
    )
    peak = report.peak_memory_bytes
    rows = {
        "Model": f"{report.model_name} ({report.model_type})",
        "Parameters": f"{report.num_parameters:,}",
        "Precision": report.precision,
        "Size on disk": f"{report.num_bytes / 2**20:,.1f} MiB",
        "Time": f"{report.seconds:.2f} s",
        "Peak memory": "unknown" if peak is None else f"{peak / 2**20:,.0f} MiB",
        "Folder": str(report.folder),
    }
    width = max(map(len, rows))
    print("\n".join(f"{label:<{width}}  {value}" for label, value in rows.items()))
    return 0
