"""resolve_model: folders, the model in the box, hub ids, and what it says when there is nothing."""

import os
from pathlib import Path

import pytest

from nanovllm.checkpoint import MODEL_IN_THE_BOX, resolve_model
from nanovllm.errors import ModelNotFoundError


@pytest.fixture
def empty_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A hub cache with nothing in it, offline; returns the working folder."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_existing_folder_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_model(str(tmp_path)) == tmp_path
    assert resolve_model("org/name") == Path("org/name"), "a folder comes before the hub"


def test_the_model_in_the_box_is_found_from_any_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (resolve_model(MODEL_IN_THE_BOX) / "config.json").is_file()


def test_a_folder_named_like_the_model_in_the_box_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / MODEL_IN_THE_BOX).mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_model(MODEL_IN_THE_BOX) == Path(MODEL_IN_THE_BOX)


@pytest.mark.parametrize("name", ["nothing", "a/b/c", "./a", "/no/such/folder", "a b/c", "..", "org/../x"])
def test_a_name_that_is_neither_folder_nor_hub_id_says_what_is_allowed(empty_hub: Path, name: str) -> None:
    if Path(name).is_dir():
        assert resolve_model(name) == Path(name)
        return
    with pytest.raises(ModelNotFoundError, match="neither an existing folder nor a hub id"):
        resolve_model(name)


def test_a_file_is_not_a_model(empty_hub: Path) -> None:
    (empty_hub / "model.onnx").touch()
    with pytest.raises(ModelNotFoundError, match="is a file, not a folder"):
        resolve_model("model.onnx")


def test_a_hub_id_without_a_network_says_both_what_was_tried_and_what_to_do(empty_hub: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"'models/tiny': there is no such folder here.*without a network"):
        resolve_model("models/tiny")


def test_the_revision_is_part_of_the_message(empty_hub: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="at revision 'v2'"):
        resolve_model("org/name", "v2")


def test_a_hub_id_that_was_downloaded_before_works_without_a_network(empty_hub: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = empty_hub / "hub" / "models--org--name"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    (snapshot / "config.json").write_text("{}")
    assert os.path.samefile(resolve_model("org/name"), snapshot)
