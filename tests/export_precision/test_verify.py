"""--verify: its numbers are those of an independent computation, and what it cannot do it says.

The comparison with transformers has tests of its own.
"""

import json
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from precision_driver import load_runner

from export import export_model
from export.cli import main
from export.verify import PROMPTS, compare_logits
from nanovllm import LLM, SamplingParams
from nanovllm.checkpoint import resolve_model
from nanovllm.errors import ConfigError, ExportError
from nanovllm.model_info import ModelInfo
from nanovllm.plugins import LogitsModelRunner
from nanovllm.testing import ReferenceModel, teacher_forced_logits, tiny_config, write_checkpoint

Float32Array = npt.NDArray[np.float32]
GREEDY = SamplingParams(temperature=0, max_tokens=48)


@pytest.fixture(autouse=True)
def _without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading it would take most of the time."""
    monkeypatch.setitem(sys.modules, "transformers", None)


def test_two_distributions_are_compared_as_torch_does() -> None:
    random = np.random.default_rng(0)
    reference, export = random.standard_normal((2, 50, 31)).astype(np.float32) * 4
    chosen = random.integers(0, 31, 50).tolist()
    found = compare_logits(export, reference, chosen)
    log_p, log_q = (torch.log_softmax(torch.tensor(logits, dtype=torch.float64), 1) for logits in (reference, export))
    assert found.num_positions == 50
    assert found.num_same == int((reference.argmax(1) == export.argmax(1)).sum())
    kl = torch.nn.functional.kl_div(log_q, log_p, reduction="sum", log_target=True)
    assert found.divergence == pytest.approx(float(kl), rel=1e-9)
    loss = torch.nn.functional.cross_entropy(torch.tensor(export, dtype=torch.float64), torch.tensor(chosen))
    assert found.loss == pytest.approx(float(loss) * 50, rel=1e-9)


def test_a_model_is_its_own_equal() -> None:
    logits = np.random.default_rng(0).standard_normal((20, 9)).astype(np.float32)
    found = compare_logits(logits, logits, [0] * 20)
    assert (found.num_same, found.divergence, found.loss) == (20, 0.0, found.reference_loss)


def test_the_figures_are_those_of_the_runner_and_the_oracle(tmp_path: Path) -> None:
    checkpoint = resolve_model("tiny-chat")
    text = tmp_path / "text.txt"
    text.write_text("The capital of France is Paris. " * 30 + "What is 7 + 5?", encoding="utf-8")
    report = export_model(
        checkpoint, tmp_path / "out", precision="int4", keep=["self_attn=fp16"], verify_text=text, progress=False
    )
    float32 = export_model(checkpoint, tmp_path / "float32", progress=False).folder
    with LLM(str(float32)) as llm:
        outputs = llm.chat([[{"role": "user", "content": prompt}] for prompt in PROMPTS], GREEDY)
        text_ids = llm.tokenizer.encode(text.read_text(encoding="utf-8"))
    oracle, runner = ReferenceModel(checkpoint), load_runner(report.folder)
    same, divergences = [], []
    for output in outputs:
        ids = [*output.prompt_token_ids, *output.outputs[0].token_ids]
        rows = slice(len(output.prompt_token_ids) - 1, -1)
        p, q = (logits[rows].astype(float) for logits in both(oracle, runner, ids))
        same += (p.argmax(1) == q.argmax(1)).tolist()
        log_p, log_q = (x - np.log(np.exp(x).sum(1, keepdims=True)) for x in (p, q))
        divergences += (np.exp(log_p) * (log_p - log_q)).sum(1).tolist()
    found = report.verification
    assert found is not None
    assert (found.num_prompts, found.num_positions) == (len(PROMPTS), len(same))
    assert found.top1_agreement == pytest.approx(np.mean(same), abs=1e-9)
    assert found.mean_kl == pytest.approx(np.mean(divergences), rel=0.02)
    assert found.perplexity_of == "text"
    assert len(text_ids) <= 512, "one window"
    for logits, perplexity in zip(
        both(oracle, runner, text_ids), (found.reference_perplexity, found.perplexity), strict=True
    ):
        read = logits[:-1].astype(float)
        losses = np.log(np.exp(read).sum(1)) - read[np.arange(len(text_ids) - 1), text_ids[1:]]
        assert perplexity == pytest.approx(np.exp(losses.mean()), rel=1e-2)
    runner.close()


def both(oracle: ReferenceModel, runner: LogitsModelRunner, ids: list[int]) -> tuple[Float32Array, Float32Array]:
    return oracle.logits(ids), teacher_forced_logits(runner, ids)


def test_it_is_stored_and_nothing_else_is_left_behind(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "model")
    folder = export_model(checkpoint, tmp_path / "out", precision="int8", verify=True, progress=False).folder
    assert sorted(file.name for file in folder.iterdir()) == ["model.onnx", "model.onnx.data", "model_info.json"]
    document = json.loads((folder / "model_info.json").read_text())
    found = document["verification"]
    assert found["reference"] == "float32"
    assert 0.5 < found["top1_agreement"] <= 1
    assert found["num_prompts"] == len(PROMPTS), "random ones, for a checkpoint without a tokenizer"
    assert ModelInfo.load(folder).verification == found
    assert export_model(checkpoint, tmp_path / "b", precision="int8", progress=False).verification is None


def test_float32_agrees_with_itself(tmp_path: Path) -> None:
    found = export_model(write_checkpoint(tmp_path / "m"), tmp_path / "o", verify=True, progress=False).verification
    assert found is not None
    assert (found.top1_agreement, found.same_answers, found.mean_kl) == (1.0, 1.0, 0.0)
    assert found.perplexity == found.reference_perplexity


def test_a_model_for_very_short_texts_is_verified_too(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "m", tiny_config(max_position_embeddings=6))
    found = export_model(checkpoint, tmp_path / "o", precision="int8", verify=True, progress=False).verification
    assert found is not None
    assert found.num_positions <= 3 * len(PROMPTS)


def test_what_is_missing_is_said_and_nothing_is_written(tmp_path: Path) -> None:
    checkpoint, text = write_checkpoint(tmp_path / "model"), tmp_path / "text.txt"
    with pytest.raises(ConfigError, match="cannot be read"):
        export_model(checkpoint, tmp_path / "out", verify_text=text, progress=False)
    text.write_text("words")
    with pytest.raises(ExportError, match=r"no tokenizer\.json"):
        export_model(checkpoint, tmp_path / "out", verify_text=text, progress=False)
    text.write_text("")
    with pytest.raises(ExportError, match="at least 2"):
        export_model("tiny-chat", tmp_path / "out", verify_text=text, progress=False)
    assert not (tmp_path / "out").exists()


def test_the_closing_table_shows_layers_and_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = write_checkpoint(tmp_path / "model")
    arguments = ["--model", str(checkpoint), "--output", str(tmp_path / "out"), "--no-progress", "--device", "cpu"]
    assert main([*arguments, "--precision", "int4", "--keep", "lm_head=bf16", "--verify"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "int8 embed_tokens" in lines
    assert "bf16 lm_head" in lines
    assert any(line.startswith("int4 2 self_attn.q_proj, 2 self_attn.k_proj") for line in lines)
    assert [line.rsplit(" ", 1)[0] for line in lines if line.startswith("Same top token")]
    assert any(line.startswith("Mean KL") for line in lines)
    assert any(line.startswith("Perplexity") and line.endswith("(answers)") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "cuda"], "device is 'cuda'; this version exports for 'cpu' only"),
        (["--precision", "int5"], "Did you mean 'int8'?"),
        (["--precision", "int8", "--keep", "mlp"], "PATTERN=PRECISION"),
        (["--verify-text", "/no/such/file"], "cannot be read as UTF-8 text"),
    ],
)
def test_what_is_refused_is_one_line_and_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    checkpoint = write_checkpoint(tmp_path / "model")
    assert main(["--model", str(checkpoint), "--output", str(tmp_path / "out"), "--no-progress", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
