"""Topics about words, things, animals and the calendar. In: the tables of facts; out: topics, the same on every run."""

from models.tiny_chat_recipe.facts import (
    COLOURS,
    DAYS,
    DEFINITIONS,
    HOMES,
    LEGS,
    MONTHS,
    OPPOSITES,
    PLURALS,
    SOUNDS,
    SPELLING_WORDS,
)
from models.tiny_chat_recipe.topic import Case, Topic, sentence


def with_article(noun: str) -> str:
    """Return the noun with "a" or "an" before it."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def story(animal: str) -> str:
    """Return a short story about an animal of the table of homes, in which only facts of that animal vary."""
    home, sound = HOMES[animal], SOUNDS[animal]
    return (
        f"Once upon a time there was a little {animal} who lived in the {home}. One day the {animal} met a new friend. "
        f"The {animal} said {sound}, and the friend laughed. They played together until the sun went down. "
        f"Then the little {animal} went back to the {home} and slept well. The end."
    )


def _colours() -> Topic:
    return Topic(
        "colours",
        3.5,
        (
            "What colour is {thing}?",
            "What color is {thing}?",
            "What is the colour of {thing}?",
            "What is the color of {thing}?",
            "Which colour is {thing}?",
            "Which colour does {thing} have?",
            "Tell me the colour of {thing}.",
            "What colour does {thing} have?",
            "Do you know what colour {thing} is?",
        ),
        ("Can you tell me what colour {thing} is?", "Which color is {thing}?", "Name the colour of {thing}."),
        tuple(Case({"thing": thing}, sentence(f"{thing} is {colour}.")) for thing, colour in COLOURS.items()),
        follow_ups=("And {thing}?", "What about {thing}?"),
    )


def _definitions() -> Topic:
    return Topic(
        "definitions",
        4.5,
        (
            "What is {thing}?",
            "What is {thing}?",
            "Define {thing}.",
            "Explain what {thing} is.",
            "Tell me what {thing} is.",
            "Do you know what {thing} is?",
            "What does the word mean: {thing}?",
            "Give me a definition of {thing}.",
            "Describe {thing} in one sentence.",
        ),
        ("Can you explain what {thing} is?", "I do not know what {thing} is.", "What exactly is {thing}?"),
        tuple(Case({"thing": thing}, sentence(f"{thing} is {text}.")) for thing, text in DEFINITIONS.items()),
        follow_ups=("And {thing}?", "And what is {thing}?"),
    )


def _opposites() -> Topic:
    directed = dict(OPPOSITES)
    for word, opposite in OPPOSITES:
        directed.setdefault(opposite, word)
    return Topic(
        "opposites",
        3.5,
        (
            "What is the opposite of {word}?",
            "What's the opposite of {word}?",
            "Tell me the opposite of {word}.",
            "Name the opposite of {word}.",
            "What word is the opposite of {word}?",
            "The opposite of {word}?",
            "Give me the opposite of {word}.",
            "Do you know the opposite of {word}?",
        ),
        ("Which word is the opposite of {word}?", "Can you tell me the opposite of {word}?"),
        tuple(Case({"word": w}, f"The opposite of {w} is {o}.") for w, o in directed.items()),
        follow_ups=("And of {word}?", "And {word}?", "What about {word}?"),
    )


def _sounds() -> Topic:
    return Topic(
        "animal sounds",
        2.5,
        (
            "What does {animal} say?",
            "What sound does {animal} make?",
            "Which sound does {animal} make?",
            "What noise does {animal} make?",
            "Tell me what {animal} says.",
            "How does {animal} sound?",
            "What is the sound of {animal}?",
        ),
        ("Which noise does {animal} make?", "Do you know what {animal} says?"),
        tuple(
            Case({"animal": with_article(a)}, sentence(f"{with_article(a)} says {sound}."))
            for a, sound in SOUNDS.items()
        ),
        follow_ups=("And {animal}?", "What about {animal}?"),
    )


def _legs() -> Topic:
    return Topic(
        "legs",
        1.5,
        (
            "How many legs does {animal} have?",
            "How many legs has {animal}?",
            "Tell me how many legs {animal} has.",
            "What is the number of legs of {animal}?",
        ),
        ("Do you know how many legs {animal} has?", "Can you tell me how many legs {animal} has?"),
        tuple(
            Case({"animal": with_article(a)}, sentence(f"{with_article(a)} has {legs} legs."))
            for a, legs in LEGS.items()
        ),
        follow_ups=("And {animal}?",),
    )


def _plurals() -> Topic:
    return Topic(
        "plurals",
        1.5,
        (
            "What is the plural of {word}?",
            "What's the plural of {word}?",
            "Tell me the plural of {word}.",
            "The plural of {word}?",
            "Give me the plural of {word}.",
            "Name the plural of {word}.",
        ),
        ("Can you tell me the plural of {word}?", "Do you know the plural of {word}?"),
        tuple(Case({"word": w}, f"The plural of {w} is {plural}.") for w, plural in PLURALS.items()),
        follow_ups=("And of {word}?", "And {word}?"),
    )


def _neighbours() -> Topic:
    cases = []
    for unit, names in (("day", DAYS), ("month", tuple(MONTHS))):
        for index, name in enumerate(names):
            after, before = names[(index + 1) % len(names)], names[index - 1]
            cases.append(Case({"unit": unit, "side": "after", "name": name}, f"{after} comes after {name}."))
            cases.append(Case({"unit": unit, "side": "before", "name": name}, f"{before} comes before {name}."))
    return Topic(
        "days and months",
        5.0,
        (
            "What {unit} comes {side} {name}?",
            "Which {unit} comes {side} {name}?",
            "What comes {side} {name}?",
            "What {unit} is {side} {name}?",
            "Name the {unit} {side} {name}.",
            "Tell me the {unit} {side} {name}.",
            "Tell me which {unit} comes {side} {name}.",
        ),
        ("Which {unit} is {side} {name}?", "Do you know what comes {side} {name}?"),
        tuple(cases),
        follow_ups=("And {side} {name}?",),
    )


def _month_lengths() -> Topic:
    return Topic(
        "days in a month",
        1.2,
        (
            "How many days are in {month}?",
            "How many days does {month} have?",
            "How many days has {month}?",
            "How long is {month}?",
            "Tell me how many days {month} has.",
        ),
        ("How many days are there in {month}?", "Do you know how many days {month} has?"),
        tuple(Case({"month": m}, f"{m} has {days} days.") for m, days in MONTHS.items()),
        follow_ups=("And {month}?",),
    )


def _spelling() -> Topic:
    return Topic(
        "spelling",
        5.0,
        (
            "Spell {word}.",
            "Spell the word {word}.",
            "How do you spell {word}?",
            "How is {word} spelled?",
            "Can you spell {word}?",
            "Tell me how to spell {word}.",
            "What are the letters of {word}?",
        ),
        ("Can you spell the word {word}?", "How do I spell the word {word}?"),
        tuple(Case({"word": w}, f"{sentence(w)} is spelled {'-'.join(w)}.") for w in SPELLING_WORDS),
        follow_ups=("And {word}?",),
    )


def _stories() -> Topic:
    return Topic(
        "stories",
        1.5,
        (
            "Tell me a story about {animal}.",
            "Write a story about {animal}.",
            "Tell me a short story about {animal}.",
            "Can you tell a story about {animal}?",
            "I want to hear a story about {animal}.",
        ),
        ("Can you write a short story about {animal}?", "Please tell me a story with {animal}."),
        tuple(Case({"animal": with_article(a)}, story(a)) for a in HOMES),
    )


WORD_TOPICS: tuple[Topic, ...] = (
    _colours(),
    _definitions(),
    _opposites(),
    _sounds(),
    _legs(),
    _plurals(),
    _neighbours(),
    _month_lengths(),
    _spelling(),
    _stories(),
)
