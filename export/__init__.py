"""`python -m export`: turns a Hugging Face checkpoint into an ONNX model, without PyTorch.

Importing this package loads nothing; `export_model` is in `export.exporter`, the command line in `export.cli`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export.exporter import ExportReport, export_model

__all__ = ["ExportReport", "export_model"]


def __getattr__(name: str) -> Any:
    """Loads the exporter, and with it the onnx package, when one of its names is first used."""
    if name not in __all__:
        raise AttributeError(f"module 'export' has no attribute {name!r}")
    try:
        from export import exporter
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "onnx":
            raise
        from nanovllm.errors import ExportError

        raise ExportError("exporting needs the onnx package: pip install 'nanovllm[cpu]'.") from error
    return getattr(exporter, name)
