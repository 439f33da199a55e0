"""Where a model is: the name that a user typed in, a local folder out.

A name is tried as a folder, as the model in the box, and as a Hugging Face hub id; nothing else. Knows nothing about
what lies in the folder.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from nanovllm.errors import ModelNotFoundError

__all__ = ["MODEL_IN_THE_BOX", "resolve_model"]

MODEL_IN_THE_BOX = "tiny-chat"

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9._-]+")
_WANTED_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.tiktoken", "*.txt", "*.onnx", "*.onnx.data")
_UNWANTED_FILES = ("*/*", "consolidated*")  # subfolders and second copies of the weights in other formats
_ONNX_FILES = ("onnx/model.onnx", "onnx/model.onnx_data*")  # the layout of onnx-community, of many precisions the first


def resolve_model(name: str, revision: str | None = None) -> Path:
    """The folder of model `name`: an existing folder, "tiny-chat", or a hub id, which is downloaded once.

    revision: branch, tag or commit of a hub id. Raises `ModelNotFoundError`, which says what was tried.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name == MODEL_IN_THE_BOX:
        return _model_in_the_box()
    if _HUB_ID.fullmatch(name):
        return _download(name, revision)
    what = "is a file, not a folder" if folder.exists() else "is neither an existing folder nor a hub id"
    raise ModelNotFoundError(
        f"model {name!r} {what}. Give a folder with config.json and *.safetensors or an exported one, a Hugging Face "
        f"hub id such as 'Qwen/Qwen2-0.5B-Instruct', or {MODEL_IN_THE_BOX!r}."
    )


def _model_in_the_box() -> Path:
    package = Path(__file__).resolve().parent
    places = [package / "_models" / MODEL_IN_THE_BOX, package.parent / "models" / MODEL_IN_THE_BOX]
    for place in places:
        if place.is_dir():
            return place
    raise ModelNotFoundError(
        f"the model in the box, {MODEL_IN_THE_BOX!r}, is missing: looked for {places[0]} and {places[1]}. "
        "Install nanovllm again."
    )


def _download(name: str, revision: str | None) -> Path:
    """The snapshot of a hub id: what lies at its top, and where no weights do, the ONNX model in its subfolder."""
    folder = _snapshot(name, revision, _WANTED_FILES, _UNWANTED_FILES)
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.onnx")):
        folder = _snapshot(name, revision, _ONNX_FILES, ())
    return folder


def _snapshot(name: str, revision: str | None, wanted: Sequence[str], unwanted: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        folder = snapshot_download(name, revision=revision, allow_patterns=list(wanted), ignore_patterns=list(unwanted))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        where = f"{name!r}" if revision is None else f"{name!r} at revision {revision!r}"
        raise ModelNotFoundError(
            f"model {where}: there is no such folder here, and the Hugging Face hub did not give it: "
            f"{str(error).strip() or type(error).__name__} Check the name and the network; a gated model needs "
            "`hf auth login`; without a network give a folder."
        ) from error
    return Path(folder)
