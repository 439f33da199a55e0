"""What a topic is: question templates times cases. It knows nothing about tokens, models or any particular fact."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Case:
    """One thing to ask about: the words that fill a template's slots, and the one right answer."""

    slots: Mapping[str, str]
    answer: str


@dataclass(frozen=True)
class Topic:
    """A kind of question.

    Every case has exactly one answer, whatever the phrasing, so that greedy decoding has clear margins.
    `held_out_phrasings` and `held_out_cases` are never trained on; `weight` is the share of training questions.
    `follow_ups` are elliptic templates, only used directly after a question of the same topic.
    """

    name: str
    weight: float
    phrasings: tuple[str, ...]
    held_out_phrasings: tuple[str, ...]
    cases: tuple[Case, ...]
    held_out_cases: tuple[Case, ...] = ()
    follow_ups: tuple[str, ...] = field(default=())


def sentence(text: str) -> str:
    """Return `text` with its first letter in upper case ("the sky is blue." -> "The sky is blue.")."""
    return text[:1].upper() + text[1:]


def small_talk(
    weight: float,
    answer: str,
    phrasings: tuple[str, ...],
    held_out_phrasings: tuple[str, ...],
    name: str = "small talk",
) -> Topic:
    """Return a topic of one case without slots."""
    return Topic(name, weight, phrasings, held_out_phrasings, (Case({}, answer),))
