"""Topics about countries. In: the table of countries; out: topics, the same on every run."""

from collections import Counter
from collections.abc import Callable

from models.tiny_chat_recipe.countries import COUNTRIES, Country
from models.tiny_chat_recipe.topic import Case, Topic, sentence


def about(country: Country) -> str:
    """Return the five sentences that answer "Tell me about France."."""
    name = sentence(country.name)
    return (
        f"{name} is a country in {country.continent}. Its capital is {country.capital}. "
        f"Most people there speak {country.language}. The currency is the {country.currency}. "
        f"{name} is known for {country.known_for}."
    )


def _cases(answer: Callable[[Country], str]) -> tuple[Case, ...]:
    return tuple(Case({"country": c.name, "capital": c.capital}, sentence(answer(c))) for c in COUNTRIES)


def _unique_capitals() -> tuple[Case, ...]:
    counts = Counter(c.capital for c in COUNTRIES)
    return tuple(
        Case({"capital": c.capital}, f"{c.capital} is the capital of {c.name}.")
        for c in COUNTRIES
        if counts[c.capital] == 1
    )


CAPITALS = Topic(
    "capitals",
    12.0,
    (
        "What is the capital of {country}?",
        "What is the capital of {country}?",
        "What is the capital of {country}?",
        "What's the capital of {country}?",
        "What is the capital city of {country}?",
        "Which city is the capital of {country}?",
        "Which city is the capital city of {country}?",
        "What city is the capital of {country}?",
        "Tell me the capital of {country}.",
        "Name the capital of {country}.",
        "Name {country}'s capital.",
        "What is {country}'s capital?",
        "What is {country}'s capital city?",
        "Do you know the capital of {country}?",
        "Do you know what the capital of {country} is?",
        "Can you tell me the capital of {country}?",
        "I want to know the capital of {country}.",
        "I need the capital of {country}.",
        "The capital of {country} is which city?",
        "The capital of {country}?",
        "Capital of {country}?",
        "{country} capital",
        "{country}: what is its capital?",
        "For {country}, what is the capital?",
        "What is the name of the capital of {country}?",
    ),
    (
        "Could you tell me what the capital of {country} is?",
        "What city serves as the capital of {country}?",
        "Please give me the capital city of {country}.",
        "I would like to know {country}'s capital.",
    ),
    _cases(lambda c: f"the capital of {c.name} is {c.capital}."),
    follow_ups=(
        "And of {country}?",
        "And {country}?",
        "And the capital of {country}?",
        "What about {country}?",
        "And what about {country}?",
        "How about {country}?",
        "Now {country}.",
    ),
)

CAPITAL_OF = Topic(
    "country of a capital",
    6.0,
    (
        "Which country has {capital} as its capital?",
        "Which country has the capital {capital}?",
        "What country has {capital} as its capital?",
        "{capital} is the capital of which country?",
        "{capital} is the capital of what country?",
        "Of which country is {capital} the capital?",
        "What country is {capital} the capital of?",
        "Whose capital is {capital}?",
        "Tell me which country {capital} is the capital of.",
        "Name the country whose capital is {capital}.",
        "In which country is the capital {capital}?",
        "{capital} is the capital city of which country?",
    ),
    (
        "Which country is {capital} the capital of?",
        "Which country's capital is {capital}?",
        "Can you name the country that has {capital} as its capital?",
    ),
    _unique_capitals(),
    follow_ups=("And {capital}?", "What about {capital}?"),
)

LANGUAGES = Topic(
    "languages",
    3.5,
    (
        "What language do people speak in {country}?",
        "What language do they speak in {country}?",
        "Which language is spoken in {country}?",
        "What language is spoken in {country}?",
        "What is the language of {country}?",
        "What do people speak in {country}?",
        "Tell me the language of {country}.",
        "Name the language of {country}.",
        "Which language do people in {country} speak?",
    ),
    ("Which language do they speak in {country}?", "What language do people in {country} speak?"),
    _cases(lambda c: f"most people in {c.name} speak {c.language}."),
    follow_ups=("And in {country}?", "What about {country}?", "And {country}?"),
)

CURRENCIES = Topic(
    "currencies",
    3.5,
    (
        "What is the currency of {country}?",
        "What currency does {country} use?",
        "Which currency is used in {country}?",
        "What money do people use in {country}?",
        "What is {country}'s currency?",
        "Tell me the currency of {country}.",
        "Name the currency of {country}.",
        "What currency do they use in {country}?",
        "Which currency does {country} have?",
    ),
    ("Which currency do people use in {country}?", "What currency is used in {country}?"),
    _cases(lambda c: f"the currency of {c.name} is the {c.currency}."),
    follow_ups=("And of {country}?", "What about {country}?", "And {country}?"),
)

CONTINENTS = Topic(
    "continents",
    3.0,
    (
        "Where is {country}?",
        "Which continent is {country} in?",
        "What continent is {country} in?",
        "On which continent is {country}?",
        "In which part of the world is {country}?",
        "Where can I find {country}?",
        "Where in the world is {country}?",
        "Tell me where {country} is.",
        "What continent does {country} belong to?",
    ),
    ("On what continent is {country}?", "Which continent does {country} belong to?"),
    _cases(lambda c: f"{c.name} is in {c.continent}."),
    follow_ups=("And {country}?", "What about {country}?"),
)

ABOUT = Topic(
    "about a country",
    3.5,
    (
        "Tell me about {country}.",
        "Tell me something about {country}.",
        "What do you know about {country}?",
        "Describe {country}.",
        "Give me some facts about {country}.",
        "What can you tell me about {country}?",
        "Write a few sentences about {country}.",
        "I want to know more about {country}.",
    ),
    ("Can you tell me something about {country}?", "Please describe {country}."),
    _cases(about),
    follow_ups=("And {country}?", "What about {country}?"),
)

COUNTRY_TOPICS: tuple[Topic, ...] = (CAPITALS, CAPITAL_OF, LANGUAGES, CURRENCIES, CONTINENTS, ABOUT)
