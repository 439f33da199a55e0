"""Exports of checkpoint folders that were served directly, kept for the next time.

A checkpoint is exported once into a cache folder whose name holds a hash over config and weights, so a changed
checkpoint or a new exporter makes a new entry. Of processes that do this at once, each exports, one wins, and all use
its folder.
"""

import hashlib
import logging
import os
import sys
from pathlib import Path

from backends.ort.session import check_files
from nanovllm.checkpoint import CONFIG_FILE, GENERATION_CONFIG_FILE, weight_files
from nanovllm.errors import ExportError, ModelError
from nanovllm.model_info import ModelInfo

__all__ = ["cache_folder", "exported"]

logger = logging.getLogger("nanovllm")


def cache_folder() -> Path:
    """$NANOVLLM_CACHE, else nanovllm in the user's cache folder: $XDG_CACHE_HOME, %LOCALAPPDATA% or ~/.cache."""
    if own := os.environ.get("NANOVLLM_CACHE"):
        return Path(own)
    base = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    return Path(base or Path.home() / ".cache") / "nanovllm"


def exported(checkpoint_folder: Path) -> Path:
    """The export of the checkpoint, made now if it is not there yet. Raises `ModelError`."""
    name = checkpoint_folder.resolve().name
    target = cache_folder() / "exports" / f"{name}-{_fingerprint(checkpoint_folder)}"
    if _usable(target):
        return target
    from export import export_model

    logger.info("exporting %s to %s; this is done once", checkpoint_folder, target)
    try:
        export_model(checkpoint_folder, target, force=target.exists(), progress=sys.stderr.isatty())
    except ExportError as error:
        if not _usable(target):  # else another process was quicker
            raise ExportError(f"{error} (NANOVLLM_CACHE names another folder for exports.)") from error
    return target


def _usable(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    try:
        check_files(folder, ModelInfo.load(folder))
    except ModelError as error:
        logger.warning("the export in the cache is broken and is made again: %s", error)
        return False
    return True


def _fingerprint(folder: Path) -> str:
    """Hash over the exporter's version, the bytes of the configs, and name, size and time of each file of weights."""
    from export.version import EXPORTER_VERSION

    digest = hashlib.sha256(f"exporter {EXPORTER_VERSION}".encode())
    for file in (CONFIG_FILE, GENERATION_CONFIG_FILE):
        path = folder / file
        digest.update(b"\0" + (path.read_bytes() if path.is_file() else b""))
    for path in weight_files(folder):
        stat = path.stat()
        digest.update(f"\0{path.name} {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]
