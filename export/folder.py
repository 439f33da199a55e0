"""Writing a folder as a whole or not at all: into a hidden sibling first, renamed into place at the end."""

import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nanovllm.errors import ExportError

__all__ = ["MODEL_FILE", "new_folder"]

MODEL_FILE = "model.onnx"
_ABANDONED_S = 3600.0


@contextmanager
def new_folder(target: Path, *, force: bool) -> Iterator[Path]:
    """Yields an empty folder beside `target`; takes target's place if the body ends well, else it is removed.

    An existing target is kept and refused, unless `force`, which replaces an exported model and nothing else. Raises
    `ExportError`; an `OSError` of the body or of the renaming becomes one.
    """
    _check_replaceable(target, force=force)
    _remove_abandoned(target)
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        part.mkdir(parents=True)
        yield part
        _put_in_place(part, target, force=force)
    except OSError as error:
        raise ExportError(f"{target} could not be written: {error}.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _check_replaceable(target: Path, *, force: bool) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not target.is_dir() or not (target / MODEL_FILE).is_file():
        raise ExportError(f"{target} exists and is no exported model; it is not replaced. Give another --output.")
    if not force:
        raise ExportError(f"{target} exists already. Give --force to replace it, or another --output.")


def _remove_abandoned(target: Path) -> None:
    """Removes what earlier runs left that were killed before they could: parts that nobody has written to for long."""
    for left in target.parent.glob(f".{target.name}.*.partial"):
        times = [path.stat().st_mtime for path in (left, *left.glob("*")) if path.exists()]
        if times and time.time() - max(times) > _ABANDONED_S:
            shutil.rmtree(left, ignore_errors=True)


def _put_in_place(part: Path, target: Path, *, force: bool) -> None:
    _check_replaceable(target, force=force)  # again: another process may have been quicker
    if target.exists():
        aside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.old")
        target.rename(aside)
        try:
            part.rename(target)
        except OSError:
            aside.rename(target)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    else:
        part.rename(target)
