"""The training corpus: an endless, seeded stream of documents made from the topics' training phrasings and cases.

A document is a conversation or plain text. This file knows nothing about tokens, and nothing held out gets in.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from models.tiny_chat_recipe.conversation import Message
from models.tiny_chat_recipe.country_topics import (
    ABOUT,
    CAPITALS,
    CONTINENTS,
    CURRENCIES,
    LANGUAGES,
)
from models.tiny_chat_recipe.talk_topics import UNKNOWN_ANSWER
from models.tiny_chat_recipe.topic import Case, Topic
from models.tiny_chat_recipe.topics import TOPICS
from models.tiny_chat_recipe.typing_habits import fill

Document = tuple[Message, ...] | str

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "You are tiny-chat.",
    "Answer the question.",
    "Be brief.",
    "You are a helpful and honest assistant. Answer in one sentence.",
)

# Questions with "there" in place of the country that the previous question was about.
THERE: tuple[tuple[Topic, tuple[str, ...]], ...] = (
    (CAPITALS, ("What is its capital?", "And its capital?", "What is the capital city there?")),
    (LANGUAGES, ("What language do they speak there?", "Which language is spoken there?", "And its language?")),
    (CURRENCIES, ("What is its currency?", "And its currency?", "What money do they use there?")),
    (CONTINENTS, ("Where is it?", "Which continent is it in?", "And where is that?")),
)

_COUNTRY_TOPICS = (CAPITALS, LANGUAGES, CURRENCIES, CONTINENTS, ABOUT)
_PLAIN_TOPICS = tuple(t for t in TOPICS if t.name in {
    "capitals", "languages", "currencies", "continents", "about a country", "colours", "definitions", "opposites",
    "animal sounds", "country of a capital", "stories",
})  # fmt: skip
_NAMES_TOPIC = next(topic for topic in TOPICS if topic.name == "names")
_MY_NAME = ("What is my name?", "What's my name?", "Do you know my name?", "Who am I?", "Tell me my name.")


@dataclass
class _Context:
    """What the last turn of a conversation was about, and the user's name if they gave it."""

    topic: Topic | None = None
    case: Case | None = None
    name: str | None = None


class CorpusWriter:
    """Writes documents one after another from one random generator."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._weights = [topic.weight for topic in TOPICS]

    def documents(self, *, long: bool) -> Iterator[Document]:
        """Yield documents for ever; with `long`, a part of them has hundreds of tokens."""
        while True:
            kind = self._rng.random()
            if long and kind < 0.1:
                yield self._conversation(self._rng.randint(8, 25))
            elif long and kind < 0.22:
                yield self._with_passage()
            elif kind < 0.28:
                yield self._plain_text()
            elif kind < 0.5:
                yield self._conversation(self._rng.randint(2, 5))
            else:
                yield self._conversation(1)

    def _topic(self) -> Topic:
        return self._rng.choices(TOPICS, self._weights)[0]

    def _case(self, topic: Topic) -> Case:
        return self._rng.choice(topic.cases)

    def _fill(self, topic: Topic, template: str, case: Case) -> str:
        return fill(template, dict(case.slots), self._rng)

    def _question(self, topic: Topic, case: Case) -> str:
        return self._fill(topic, self._rng.choice(topic.phrasings), case)

    def _conversation(self, num_turns: int) -> tuple[Message, ...]:
        """Return a conversation in which some questions can only be understood from what went before."""
        messages, context = self._opening(), _Context()
        if num_turns > 1 and self._rng.random() < 0.15:
            context.topic = _NAMES_TOPIC
        for _ in range(num_turns):
            question, answer = self._turn(context)
            messages += (Message("user", question), Message("assistant", answer))
        return messages

    def _turn(self, context: _Context) -> tuple[str, str]:
        """Return the next (question, answer), and remember in `context` what it was about."""
        kind = self._rng.random()
        if kind < (0.01 if context.name is None else 0.3):
            question = fill(self._rng.choice(_MY_NAME), {}, self._rng)
            return question, UNKNOWN_ANSWER if context.name is None else f"Your name is {context.name}."
        if context.topic is not None and context.case is not None:
            if context.topic.follow_ups and kind < 0.5:
                context.case = self._case(context.topic)
                template = self._rng.choice(context.topic.follow_ups)
                return self._fill(context.topic, template, context.case), context.case.answer
            if context.topic in _COUNTRY_TOPICS and kind < 0.75:
                return self._question_about_there(context)
        if context.topic is None or context.case is not None:
            context.topic = self._topic()
        context.case = self._case(context.topic)
        if context.topic is _NAMES_TOPIC:
            context.name = context.case.slots["name"]
        return self._question(context.topic, context.case), context.case.answer

    def _question_about_there(self, context: _Context) -> tuple[str, str]:
        """Return a question about the country of `context`, without its name."""
        assert context.topic is not None
        assert context.case is not None
        index = context.topic.cases.index(context.case)
        context.topic, templates = self._rng.choice(THERE)
        context.case = context.topic.cases[index]
        return fill(self._rng.choice(templates), {}, self._rng), context.case.answer

    def _opening(self) -> tuple[Message, ...]:
        if self._rng.random() < 0.12:
            return (Message("system", self._rng.choice(SYSTEM_PROMPTS)),)
        return ()

    def _sentences(self, num_sentences: int) -> str:
        topics = self._rng.choices(_PLAIN_TOPICS, [t.weight for t in _PLAIN_TOPICS], k=num_sentences)
        return " ".join(self._case(topic).answer for topic in topics)

    def _plain_text(self) -> str:
        return self._sentences(self._rng.randint(1, 3))

    def _with_passage(self) -> tuple[Message, ...]:
        """Return one question with a long text before or after it that has little to do with it."""
        topic = self._topic()
        case = self._case(topic)
        question, text = self._question(topic, case), self._sentences(self._rng.randint(4, 45))
        if self._rng.random() < 0.7:
            lead = self._rng.choice(("", "Read this text: ", "Here is a text. ", "Text: "))
            ask = self._rng.choice(("", "Question: ", "Now answer this: ", "My question: "))
            content = f"{lead}{text}{self._rng.choice((' ', chr(10), chr(10) * 2))}{ask}{question}"
        else:
            content = f"{question}{self._rng.choice((' ', chr(10), chr(10) * 2))}{text}"
        return (*self._opening(), Message("user", content), Message("assistant", case.answer))
