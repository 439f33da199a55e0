"""int8 gives tiny-chat's answers to the questions that its training never saw, up to near-ties of float32's logits."""

from pathlib import Path

import pytest
from precision_driver import load_runner

from export import export_model
from nanovllm import LLM, SamplingParams
from nanovllm.testing import assert_same_tokens, teacher_forced_logits

NEAR_TIE = 0.11
"""The root mean square by which int8 moves the distance of float32's two best logits (docs/precisions.md)."""

GREEDY = SamplingParams(temperature=0, max_tokens=200)


@pytest.fixture(scope="module")
def questions() -> tuple[list[list[dict[str, str]]], list[str]]:
    """Every third held-out conversation, and the right answers."""
    from models.tiny_chat_recipe.evaluate import held_out_examples  # imports transformers, which tests do when they run

    examples = [example for part in held_out_examples().values() for example in part][::3]
    return [[{"role": m.role, "content": m.content} for m in e.messages] for e in examples], [
        e.answer for e in examples
    ]


def test_int8_answers_held_out_questions_as_float32_does(
    questions: tuple[list[list[dict[str, str]]], list[str]], tmp_path: Path
) -> None:
    conversations, right = questions
    assert len(conversations) > 500
    folders, answers, texts = {}, {}, {}
    for precision in ("fp32", "int8"):
        folders[precision] = export_model("tiny-chat", tmp_path / precision, precision=precision, progress=False).folder
        with LLM(str(folders[precision])) as llm:
            outputs = llm.chat(conversations, GREEDY)
        prompts = [list(output.prompt_token_ids) for output in outputs]
        answers[precision] = [list(output.outputs[0].token_ids) for output in outputs]
        texts[precision] = [output.outputs[0].text for output in outputs]
    differ = [i for i, (a, b) in enumerate(zip(answers["fp32"], answers["int8"], strict=True)) if a != b]
    assert len(differ) <= 0.01 * len(right)
    float32 = load_runner(folders["fp32"])
    for i in differ:
        logits = teacher_forced_logits(float32, prompts[i] + answers["int8"][i])
        assert_same_tokens(logits, prompts[i], answers["int8"][i], near_tie=NEAR_TIE, min_share=0.0)
    float32.close()
    num_right = {name: sum(a == b for a, b in zip(found, right, strict=True)) for name, found in texts.items()}
    assert num_right["fp32"] > 1400
    assert abs(num_right["int8"] - num_right["fp32"]) <= 0.002 * len(right)
