"""Accuracy on what was held out. In: a model and its tokenizer; out: one record per topic and kind of hold-out.

An answer counts only if it is exactly the expected one, and ended by the end-of-turn token.
"""

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import Qwen2ForCausalLM

from models.tiny_chat_recipe.conversation import END_OF_TEXT, TURN_END, Message, render
from models.tiny_chat_recipe.country_topics import CAPITALS, CURRENCIES, LANGUAGES
from models.tiny_chat_recipe.tokenizer import token_id
from models.tiny_chat_recipe.topic import Case, Topic
from models.tiny_chat_recipe.topics import TOPICS

_MAX_NEW_TOKENS = 200
_MAX_EXAMPLES_PER_TOPIC = 320
_MAX_ROWS = 64


@dataclass(frozen=True)
class Example:
    """A conversation that ends with a question, and the one right answer."""

    messages: tuple[Message, ...]
    answer: str


@dataclass(frozen=True)
class Score:
    """How many of `num_examples` were answered exactly; `held_out` says what training never saw."""

    topic: str
    held_out: str
    num_right: int
    num_examples: int
    mistakes: tuple[tuple[str, str], ...]  # (question, what the model said)


def _questions(templates: Iterable[str], cases: Iterable[Case]) -> list[Example]:
    filled = [(template.format(**case.slots), case.answer) for template in templates for case in cases]
    return [Example((Message("user", text[:1].upper() + text[1:]),), answer) for text, answer in filled]


def _lower_case(examples: list[Example]) -> list[Example]:
    """Return the same questions in lower case and without their last mark."""
    return [
        Example((Message("user", example.messages[0].content.lower().rstrip("?.!")),), example.answer)
        for example in examples
    ]


def _follow_ups(topic: Topic, template: str, rng: random.Random) -> list[Example]:
    """Return, for each case, a trained question about a random other case and then a short follow-up."""
    examples = []
    for case in topic.cases:
        first = rng.choice([other for other in topic.cases if other is not case])
        opening = (
            Message("user", topic.phrasings[0].format(**first.slots)),
            Message("assistant", first.answer),
        )
        examples.append(Example((*opening, Message("user", template.format(**case.slots))), case.answer))
    return examples


def held_out_examples() -> dict[tuple[str, str], list[Example]]:
    """Return the examples by (topic, what was held out)."""
    examples: dict[tuple[str, str], list[Example]] = defaultdict(list)
    for topic in TOPICS:
        assert not set(topic.phrasings) & set(topic.held_out_phrasings)
        examples[topic.name, "phrasings"] += _questions(topic.held_out_phrasings, topic.cases)
        if topic.held_out_cases:
            kind = {"lists": "pairs of list and length", "unknown": "names"}
            label = kind.get(topic.name, "operands")
            examples[topic.name, label] += _questions(dict.fromkeys(topic.phrasings), topic.held_out_cases)
    capitals = _questions(CAPITALS.held_out_phrasings, CAPITALS.cases)
    examples["capitals", "phrasings, in lower case, no question mark"] = _lower_case(capitals)
    rng = random.Random(8)
    examples["follow-up: And of X?", "pairs of countries"] = _follow_ups(CAPITALS, "And of {country}?", rng)
    for topic in (LANGUAGES, CURRENCIES):
        examples["follow-up: What about X?", "pairs of countries"] += _follow_ups(topic, "What about {country}?", rng)
    return {
        key: found if len(found) <= _MAX_EXAMPLES_PER_TOPIC else rng.sample(found, _MAX_EXAMPLES_PER_TOPIC)
        for key, found in examples.items()
    }


def greedy_answers(model: Qwen2ForCausalLM, tokenizer: Tokenizer, prompts: Sequence[str]) -> list[str | None]:
    """Return the model's greedy completion of each prompt; `None` where it did not end by itself."""
    encoded = [encoding.ids for encoding in tokenizer.encode_batch(list(prompts), add_special_tokens=False)]
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, ids in enumerate(encoded):
        by_length[len(ids)].append(index)
    answers: list[str | None] = [None] * len(prompts)
    for length, indices in sorted(by_length.items()):
        for start in range(0, len(indices), _MAX_ROWS):
            chosen = indices[start : start + _MAX_ROWS]
            rows = _generate(model, tokenizer, [encoded[index] for index in chosen])
            for index, row in zip(chosen, rows, strict=True):
                answers[index] = _text(tokenizer, row[length:])
    return answers


def _generate(model: Qwen2ForCausalLM, tokenizer: Tokenizer, rows: list[list[int]]) -> list[list[int]]:
    """Return prompts and completions of rows of one length; finished rows are filled with end-of-text."""
    input_ids = torch.tensor(rows)
    untyped: Any = model  # the mixin's annotations do not accept its own classes
    with torch.inference_mode():
        output = untyped.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=_MAX_NEW_TOKENS,
            do_sample=False,
            eos_token_id=[token_id(tokenizer, TURN_END), token_id(tokenizer, END_OF_TEXT)],
            pad_token_id=token_id(tokenizer, END_OF_TEXT),
        )
    return [[int(token_id) for token_id in row] for row in output]


def _text(tokenizer: Tokenizer, ids: list[int]) -> str | None:
    turn_end_id = token_id(tokenizer, TURN_END)
    if turn_end_id not in ids:
        return None
    text: str = tokenizer.decode(ids[: ids.index(turn_end_id)], skip_special_tokens=False)
    return text


def evaluate(model: Qwen2ForCausalLM, tokenizer: Tokenizer) -> list[Score]:
    """Return the scores over everything that was held out, computed in the model's own type."""
    scores = []
    for (topic, held_out), examples in held_out_examples().items():
        prompts = [render(example.messages, add_generation_prompt=True) for example in examples]
        answers = greedy_answers(model, tokenizer, prompts)
        mistakes = tuple(
            (example.messages[-1].content, answer or "(no end)")
            for example, answer in zip(examples, answers, strict=True)
            if answer != example.answer
        )
        scores.append(Score(topic, held_out, len(examples) - len(mistakes), len(examples), mistakes))
    return scores


def table(scores: Iterable[Score]) -> str:
    """Return the scores as a Markdown table."""
    lines = ["| Topic | Held out from training | Right | Of | Accuracy |", "|---|---|---:|---:|---:|"]
    lines += [
        f"| {s.topic} | {s.held_out} | {s.num_right} | {s.num_examples} | {s.num_right / s.num_examples:.1%} |"
        for s in scores
    ]
    return "\n".join(lines)
