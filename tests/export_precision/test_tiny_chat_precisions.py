"""A trained model keeps its answers in int8 and in int4, also with outlying channels in its activations."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from precision_driver import load_runner, with_outliers

from export import export_model
from nanovllm import LLM, SamplingParams
from nanovllm.checkpoint import resolve_model
from nanovllm.testing import ReferenceModel, teacher_forced_logits

QUESTIONS = (
    "What is the capital of France?",
    "Which country has Tokyo as its capital?",
    "Please give me the capital city of Peru.",
    "What language do they speak in Brazil?",
    "What is the currency of Japan?",
    "Tell me about the United States.",
    "What is 7 + 5?",
    "How much is 15 minus 6?",
    "Count down from 10.",
    "Write the 7 times table.",
    "Give me a list of five colours.",
    "Can you explain what a volcano is?",
    "What is the opposite of hot?",
    "Spell the word banana.",
    "Tell me a story about a cat.",
    "Who are you?",
)
GREEDY = SamplingParams(temperature=0, max_tokens=40)


@dataclass(frozen=True)
class Answers:
    """Prompts and float32's answers as token ids, and the oracle's logits at each answer's tokens."""

    prompts: list[list[int]]
    answers: list[list[int]]
    logits: list[npt.NDArray[np.float32]]


def ask(folder: Path) -> tuple[list[list[int]], list[list[int]]]:
    with LLM(str(folder)) as llm:
        outputs = llm.chat([[{"role": "user", "content": question}] for question in QUESTIONS], GREEDY)
    return [list(o.prompt_token_ids) for o in outputs], [list(o.outputs[0].token_ids) for o in outputs]


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    return resolve_model("tiny-chat")


@pytest.fixture(scope="module")
def outlying(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_outliers(checkpoint, tmp_path_factory.mktemp("outliers") / "model")


@pytest.fixture(scope="module")
def reference(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    folder = export_model(checkpoint, tmp_path_factory.mktemp("fp32") / "export", progress=False).folder
    prompts, answers = ask(folder)
    oracle = ReferenceModel(checkpoint)
    logits = [
        oracle.logits(prompt + answer)[len(prompt) - 1 : -1] for prompt, answer in zip(prompts, answers, strict=True)
    ]
    return Answers(prompts, answers, logits)


def agreement(folder: Path, reference: Answers) -> float:
    """Share of tokens of float32's answers at which the export prefers the same one."""
    runner = load_runner(folder)
    same = []
    for prompt, answer, expected in zip(reference.prompts, reference.answers, reference.logits, strict=True):
        logits = teacher_forced_logits(runner, prompt + answer)[len(prompt) - 1 : -1]
        same += (logits.argmax(1) == expected.argmax(1)).tolist()
    runner.close()
    assert len(same) > 150
    return float(np.mean(same))


@pytest.mark.parametrize(("precision", "threshold"), [("fp16", 1.0), ("bf16", 1.0), ("int8", 0.99), ("int8w", 0.99)])
def test_eight_bits_and_more_keep_every_answer(
    checkpoint: Path, reference: Answers, tmp_path: Path, precision: str, threshold: float
) -> None:
    folder = export_model(checkpoint, tmp_path / "out", precision=precision, progress=False).folder
    assert agreement(folder, reference) >= threshold
    assert ask(folder) == (reference.prompts, reference.answers)


def test_four_bits_agree_at_95_percent_of_the_tokens(checkpoint: Path, reference: Answers, tmp_path: Path) -> None:
    folder = export_model(checkpoint, tmp_path / "out", precision="int4", progress=False).folder
    assert agreement(folder, reference) >= 0.95


@pytest.mark.parametrize(("precision", "threshold"), [("int8", 0.98), ("int8w", 0.98), ("int4", 0.95)])
def test_outlying_channels_are_folded_away(
    outlying: Path, reference: Answers, tmp_path: Path, precision: str, threshold: float
) -> None:
    report = export_model(outlying, tmp_path / "out", precision=precision, progress=False)
    assert precision == "int4" or all(set(count) == {precision} for count in report.layers.values())
    assert agreement(report.folder, reference) >= threshold


def test_without_folding_the_same_outliers_cost_answers(outlying: Path, reference: Answers, tmp_path: Path) -> None:
    """So the test above tests something."""
    folder = export_model(outlying, tmp_path / "out", precision="int8", smoothing=False, progress=False).folder
    assert agreement(folder, reference) < 0.98
