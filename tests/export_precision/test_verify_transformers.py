"""--verify against transformers: its figures are transformers', and an export never fails for want of it."""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from export import ExportReport, export_model
from export.cli import main
from export.transformers_reference import NoTransformersError, TransformersReference
from export.verify import PROMPTS, Verification
from nanovllm import LLM, SamplingParams
from nanovllm.checkpoint import resolve_model
from nanovllm.model_info import ModelInfo
from nanovllm.testing import tiny_config, write_checkpoint


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    return resolve_model("tiny-chat")


@pytest.fixture(scope="module")
def theirs(checkpoint: Path) -> Iterator[TransformersReference]:
    """tiny-chat in transformers: a process that takes seconds to start."""
    with TransformersReference(checkpoint) as reference:
        yield reference


EXPORT = """
import sys
from export import export_model
export_model(sys.argv[1], sys.argv[2], verify=True, progress=False)
print(sorted({"torch", "transformers"} & set(sys.modules)))
"""


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The folder of tiny-chat in float32, verified by a process of its own, and what that printed and complained of."""
    folder = tmp_path_factory.mktemp("verified") / "out"
    command = [sys.executable, "-c", EXPORT, str(checkpoint), str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return folder, result.stdout.strip(), result.stderr


def verification(report: ExportReport) -> Verification:
    assert report.verification is not None
    return report.verification


def test_its_logits_are_those_of_transformers(checkpoint: Path, theirs: TransformersReference) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries that transformers imports
        import torch
        import transformers

        model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    passages: Sequence[list[int]] = ([5], [1, 2, 3, 4, 5, 6, 7], list(range(300)))
    assert theirs.version == transformers.__version__
    for ids in passages:
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits[0].numpy()
        for first in {0, len(ids) - 1}:
            rows = theirs.logits(ids, first=first)
            assert rows.dtype == np.float32
            np.testing.assert_allclose(rows, expected[first:], atol=2e-4)


def test_a_float32_export_agrees_with_transformers_on_every_token(exported: tuple[Path, str, str]) -> None:
    found = ModelInfo.load(exported[0]).verification
    assert found is not None
    assert found["transformers_note"] is None
    against = found["transformers"]
    assert against["num_positions"] == found["num_positions"] > 100
    assert against["top1_agreement"] == 1.0
    assert 0 <= against["mean_kl"] < 1e-6
    assert against["perplexity"] == found["perplexity"]
    assert against["reference_perplexity"] == pytest.approx(found["reference_perplexity"], rel=1e-4)
    assert against["reference_perplexity"] != found["reference_perplexity"], "it is not our own graph once more"


def test_the_exporter_itself_never_loads_torch(exported: tuple[Path, str, str]) -> None:
    assert exported[1:] == ("[]", "")


def test_an_int8_export_is_as_far_from_transformers_as_from_our_float32(checkpoint: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The capital of France is Paris. " * 100, encoding="utf-8")
    report = export_model(checkpoint, tmp_path / "out", precision="int8", verify_text=text, progress=False)
    found, theirs = verification(report), verification(report).transformers
    assert theirs is not None
    assert theirs.top1_agreement >= 0.99
    assert theirs.mean_kl == pytest.approx(found.mean_kl, rel=1e-2)
    assert theirs.mean_kl > 1e-6
    assert theirs.perplexity == found.perplexity, "of the same text"
    assert theirs.reference_perplexity == pytest.approx(found.reference_perplexity, rel=1e-4)
    document = json.loads((report.folder / "model_info.json").read_text())["verification"]
    assert document["transformers"] == {
        "num_positions": theirs.num_positions,
        "top1_agreement": theirs.top1_agreement,
        "mean_kl": theirs.mean_kl,
        "perplexity": theirs.perplexity,
        "reference_perplexity": theirs.reference_perplexity,
        "version": theirs.version,
    }
    assert (document["reference"], document["transformers_note"]) == ("float32", None)
    assert document["mean_kl"] == found.mean_kl, "what stood there before stands there still"
    assert ModelInfo.load(report.folder).verification == document


def test_a_checkpoint_that_computes_something_else_shows(
    checkpoint: Path, theirs: TransformersReference, tmp_path: Path
) -> None:
    """The second reference reads the checkpoint itself: a defect common to all our exports cannot hide."""
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in checkpoint.iterdir():
        if file.suffix in (".json", ".safetensors", ".jinja"):
            (broken / file.name).write_bytes(file.read_bytes())
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"rope_theta": 500.0}))
    with LLM(str(export_model(checkpoint, tmp_path / "out", progress=False).folder)) as llm:
        (output,) = llm.chat([[{"role": "user", "content": PROMPTS[0]}]], SamplingParams(temperature=0))
    ids = [*output.prompt_token_ids, *output.outputs[0].token_ids]
    with TransformersReference(broken) as wrong:
        assert np.abs(theirs.logits(ids) - wrong.logits(ids)).max() > 0.1


@pytest.mark.parametrize("package", ["transformers", "torch"])
def test_without_transformers_the_table_says_so_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    folder = tmp_path / "out"
    arguments = ["--model", str(write_checkpoint(tmp_path / "model")), "--output", str(folder), "--no-progress"]
    assert main([*arguments, "--verify"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Against transformers")]
    assert len(lines) == 1
    expected = f"not compared: {package} is not installed; pip install transformers torch"
    assert lines[0].split(maxsplit=2) == ["Against", "transformers", expected]
    document = json.loads((folder / "model_info.json").read_text())["verification"]
    assert document["transformers"] is None
    assert document["transformers_note"] == expected.removeprefix("not compared: ")
    assert document["top1_agreement"] == 1.0


def test_random_weights_have_our_own_graph_as_the_only_reference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shape").mkdir()
    (tmp_path / "shape" / "config.json").write_text(json.dumps(tiny_config()))
    arguments = ["--model", str(tmp_path / "shape"), "--output", str(tmp_path / "out"), "--no-progress"]
    assert main([*arguments, "--random-weights", "--verify"]) == 0
    assert "Against transformers  not compared: random weights; there is no checkpoint" in capsys.readouterr().out


def test_a_checkpoint_that_transformers_refuses_is_exported_with_a_note(tmp_path: Path) -> None:
    """Ours reads what concerns it; transformers also reads a key that is broken here."""
    model = write_checkpoint(tmp_path / "model", tiny_config(layer_types=["full_attention"]))
    report = export_model(model, tmp_path / "out", precision="int8", verify=True, progress=False)
    found = verification(report)
    assert found.transformers is None
    assert found.transformers_note is not None
    assert found.transformers_note.startswith("it cannot run this checkpoint: ")
    assert "\n" not in found.transformers_note


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("raise ImportError('broken\\n   installation')", "ImportError: broken installation"),
        ("raise ImportError('long ' * 100)", "long long long .*\\.\\.\\.$"),
        ("import os; os._exit(137)", "its process ended early \\(exit code 137"),
        ("print('a word on standard output', flush=True); raise ImportError('then')", "ImportError: then"),
    ],
)
def test_a_broken_installation_is_a_note(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, said: str
) -> None:
    (tmp_path / "torch.py").touch()
    (tmp_path / "transformers.py").write_text(module)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(NoTransformersError, match=said), TransformersReference(checkpoint):
        pytest.fail("it was loaded")


def test_what_transformers_would_make_up_is_refused(tmp_path: Path) -> None:
    """A weight that the checkpoint lacks would be drawn at random."""
    model = write_checkpoint(tmp_path / "model")
    config = tiny_config(num_hidden_layers=3)
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(NoTransformersError, match=r"no weights for model\.layers\.2"), TransformersReference(model):
        pytest.fail("it was loaded")


def test_a_token_that_the_model_has_not_ends_it_with_the_reason(checkpoint: Path) -> None:
    with TransformersReference(checkpoint) as reference:
        with pytest.raises(NoTransformersError, match="IndexError"):
            reference.logits([10**6])
        with pytest.raises(NoTransformersError, match="its process ended early"):
            reference.logits([1])
