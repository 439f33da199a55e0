"""Topics about numbers. In: ranges and a fixed seed for the held-out operands; out: topics, the same on every run."""

import random
from collections.abc import Callable, Iterable

from models.tiny_chat_recipe.facts import LISTS, NUMBER_WORDS
from models.tiny_chat_recipe.topic import Case, Topic, sentence

_HELD_OUT_SHARE = 0.08


def _split(cases: Iterable[Case], seed: int) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Return (trained, held out): a seeded random split by operands."""
    shuffled = list(cases)
    random.Random(seed).shuffle(shuffled)
    num_held_out = round(len(shuffled) * _HELD_OUT_SHARE)
    return tuple(shuffled[num_held_out:]), tuple(shuffled[:num_held_out])


def _sums(symbol: str, pairs: Iterable[tuple[int, int]], result: Callable[[int, int], int]) -> list[Case]:
    return [Case({"a": str(a), "b": str(b)}, f"{a} {symbol} {b} = {result(a, b)}.") for a, b in pairs]


def _addition() -> Topic:
    pairs = [(a, b) for a in range(13) for b in range(13)]
    trained, held_out = _split(_sums("+", pairs, lambda a, b: a + b), seed=1)
    return Topic(
        "addition",
        6.0,
        (
            "What is {a} + {b}?",
            "What is {a} plus {b}?",
            "How much is {a} + {b}?",
            "How much is {a} plus {b}?",
            "{a} + {b}",
            "{a} + {b} =",
            "{a} + {b} = ?",
            "{a}+{b}",
            "{a} plus {b}",
            "Calculate {a} + {b}.",
            "Add {a} and {b}.",
            "What is the sum of {a} and {b}?",
            "Tell me what {a} + {b} is.",
        ),
        ("Can you calculate {a} plus {b}?", "What does {a} + {b} make?", "Please compute {a} + {b}."),
        trained,
        held_out,
        follow_ups=("And {a} + {b}?", "And {a} plus {b}?"),
    )


def _subtraction() -> Topic:
    pairs = [(a, b) for a in range(13) for b in range(a + 1)]
    trained, held_out = _split(_sums("-", pairs, lambda a, b: a - b), seed=2)
    return Topic(
        "subtraction",
        5.0,
        (
            "What is {a} - {b}?",
            "What is {a} minus {b}?",
            "How much is {a} - {b}?",
            "How much is {a} minus {b}?",
            "{a} - {b}",
            "{a} - {b} =",
            "{a} - {b} = ?",
            "{a}-{b}",
            "{a} minus {b}",
            "Calculate {a} - {b}.",
            "Take {b} from {a}.",
            "Subtract {b} from {a}.",
            "Tell me what {a} - {b} is.",
        ),
        ("Can you calculate {a} minus {b}?", "What does {a} - {b} make?", "Please compute {a} - {b}."),
        trained,
        held_out,
        follow_ups=("And {a} - {b}?", "And {a} minus {b}?"),
    )


def _multiplication() -> Topic:
    pairs = [(a, b) for a in range(11) for b in range(11)]
    return Topic(
        "multiplication",
        6.0,
        (
            "What is {a} x {b}?",
            "What is {a} * {b}?",
            "What is {a} times {b}?",
            "How much is {a} times {b}?",
            "{a} x {b}",
            "{a} * {b}",
            "{a} * {b} =",
            "{a} times {b}",
            "Calculate {a} x {b}.",
            "Multiply {a} by {b}.",
            "What is the product of {a} and {b}?",
        ),
        ("Can you calculate {a} times {b}?", "What does {a} x {b} make?", "Please compute {a} * {b}."),
        tuple(_sums("x", pairs, lambda a, b: a * b)),
        follow_ups=("And {a} x {b}?", "And {a} times {b}?"),
    )


def _counting() -> Topic:
    cases = tuple(Case({"a": str(a)}, ", ".join(map(str, range(1, a + 1))) + ".") for a in range(3, 21))
    return Topic(
        "counting",
        1.5,
        (
            "Count to {a}.",
            "Count from 1 to {a}.",
            "Can you count to {a}?",
            "Count up to {a}.",
            "Say the numbers from 1 to {a}.",
            "Write the numbers from 1 to {a}.",
        ),
        ("I want you to count to {a}.", "List the numbers from 1 to {a}."),
        cases,
    )


def _counting_down() -> Topic:
    cases = tuple(Case({"a": str(a)}, ", ".join(map(str, range(a, -1, -1))) + ".") for a in range(3, 21))
    return Topic(
        "counting down",
        1.0,
        (
            "Count down from {a}.",
            "Count down from {a} to 0.",
            "Count backwards from {a}.",
            "Start a countdown from {a}.",
        ),
        ("Can you count down from {a}?",),
        cases,
    )


def _times_tables() -> Topic:
    cases = tuple(Case({"a": str(a)}, "\n".join(f"{a} x {b} = {a * b}" for b in range(1, 11))) for a in range(1, 11))
    return Topic(
        "times tables",
        1.0,
        (
            "Write the {a} times table.",
            "Show me the {a} times table.",
            "What is the {a} times table?",
            "Say the {a} times table.",
        ),
        ("Can you write the {a} times table?", "Give me the {a} times table."),
        cases,
    )


def _lists() -> Topic:
    cases = [
        Case(
            {"n": NUMBER_WORDS[n], "things": things},
            "\n".join(f"{i}. {sentence(item)}" for i, item in enumerate(items[:n], start=1)),
        )
        for things, items in LISTS.items()
        for n in range(2, 9)
    ]
    trained, held_out = _split(cases, seed=5)
    return Topic(
        "lists",
        3.0,
        (
            "List {n} {things}.",
            "Name {n} {things}.",
            "Give me {n} {things}.",
            "Give me a list of {n} {things}.",
            "Write a list of {n} {things}.",
            "Can you list {n} {things}?",
        ),
        ("Can you name {n} {things}?", "I need a list of {n} {things}."),
        trained,
        held_out,
        follow_ups=("And {n} {things}?", "Now {n} {things}."),
    )


NUMBER_TOPICS: tuple[Topic, ...] = (
    _addition(),
    _subtraction(),
    _multiplication(),
    _counting(),
    _counting_down(),
    _times_tables(),
    _lists(),
)
