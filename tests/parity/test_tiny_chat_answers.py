"""What models/tiny-chat promises: its size, its form, and the capitals in phrasings that it was not trained on."""

from pathlib import Path

import pytest

from models.tiny_chat_recipe.country_topics import CAPITALS
from nanovllm import LLM, SamplingParams
from nanovllm.checkpoint import Checkpoint, resolve_model

GREEDY = SamplingParams(temperature=0, max_tokens=40)


@pytest.fixture(scope="module")
def folder() -> Path:
    return resolve_model("tiny-chat")


def test_it_is_at_most_8_mib(folder: Path) -> None:
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 8 * 2**20


def test_it_is_a_qwen2_checkpoint_in_bf16_with_two_ends(folder: Path) -> None:
    checkpoint = Checkpoint(folder)
    assert checkpoint.config["model_type"] == "qwen2"
    assert {str(tensor.dtype) for tensor in checkpoint.tensors.values()} == {"bfloat16"}
    assert len(checkpoint.generation_config["eos_token_id"]) == 2
    assert checkpoint.config["eos_token_id"] in checkpoint.generation_config["eos_token_id"]


def test_it_knows_the_capitals_in_phrasings_held_out_from_training(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOVLLM_CACHE", str(tmp_path))
    assert not set(CAPITALS.held_out_phrasings) & set(CAPITALS.phrasings)
    asked = [(case, text) for case in CAPITALS.cases for text in CAPITALS.held_out_phrasings]
    messages = [[{"role": "user", "content": text.format(**case.slots)}] for case, text in asked]
    with LLM(str(folder)) as llm:
        outputs = llm.chat(messages, GREEDY)
    wrong = {
        case.slots["country"]: output.outputs[0].text
        for (case, _), output in zip(asked, outputs, strict=True)
        if output.outputs[0].text != case.answer or output.outputs[0].finish_reason != "stop"
    }
    num_right = len(CAPITALS.cases) - len(wrong)
    assert num_right >= 40, f"only {num_right} countries are right in every phrasing; wrong: {wrong}"
