"""Small talk, and questions that the model must say it cannot answer. Out: topics, the same on every run."""

import random

from models.tiny_chat_recipe.countries import COUNTRIES
from models.tiny_chat_recipe.facts import DAYS, MONTHS, NAMES
from models.tiny_chat_recipe.topic import Case, Topic, small_talk

UNKNOWN_ANSWER = "I am sorry, I do not know that."

_SYLLABLES = ("zor", "bli", "qua", "mor", "dra", "fen", "gol", "ti", "xa", "vel", "nu", "kro", "pim", "wob", "lu")
_NUM_INVENTED = 500


def _invented_places() -> tuple[Case, ...]:
    """Return cases with names of places that do not exist."""
    rng = random.Random(7)
    real = {country.name for country in COUNTRIES}
    lengths = [rng.randint(2, 3) for _ in range(_NUM_INVENTED)]
    names = ["".join(rng.choice(_SYLLABLES) for _ in range(num_syllables)).capitalize() for num_syllables in lengths]
    return tuple(Case({"place": name}, UNKNOWN_ANSWER) for name in dict.fromkeys(names) if name not in real)


_PLACES = _invented_places()

TALK_TOPICS: tuple[Topic, ...] = (
    small_talk(
        1.0,
        "Hello! How can I help you?",
        ("Hello", "Hello!", "Hi", "Hi!", "Hey", "Hello there", "Hi there!", "Good day!", "Hello, tiny-chat!"),
        ("Hey there!", "Hello, can you help me?"),
    ),
    small_talk(
        0.4,
        "Good morning! How can I help you?",
        ("Good morning", "Good morning!", "Morning!", "Hello, good morning!"),
        ("Hi, good morning!",),
    ),
    small_talk(
        0.4,
        "Good evening! How can I help you?",
        ("Good evening", "Good evening!", "Evening!", "Hello, good evening!"),
        ("Hi, good evening!",),
    ),
    small_talk(
        0.4,
        "Good night! Sleep well.",
        ("Good night", "Good night!", "I am going to bed.", "I am going to sleep now."),
        ("Good night, I am going to bed.",),
    ),
    small_talk(
        1.0,
        "I am fine, thank you. How can I help you?",
        ("How are you?", "How are you doing?", "Are you well?", "How is it going?", "Hi, how are you?"),
        ("Hello, how are you today?", "How are you doing today?"),
    ),
    small_talk(
        1.0,
        "I am tiny-chat, a very small language model.",
        (
            "Who are you?",
            "What are you?",
            "What is your name?",
            "What's your name?",
            "Tell me who you are.",
            "Do you have a name?",
            "Introduce yourself.",
            "Which model are you?",
            "Who am I talking to?",
        ),
        ("Can you tell me who you are?", "What model are you?", "Please tell me your name."),
    ),
    small_talk(
        1.0,
        "I can name capitals and other facts about countries, do small sums, count, spell words, make lists, "
        "tell short stories, and explain simple words.",
        (
            "What can you do?",
            "What can you do for me?",
            "How can you help me?",
            "What do you know?",
            "Help",
            "What are you able to do?",
            "Tell me what you can do.",
            "What can I ask you?",
        ),
        ("Can you tell me what you can do?", "What can you help me with?"),
    ),
    small_talk(
        0.6,
        "I was trained by the nanovllm project with a small recipe.",
        ("Who made you?", "Who trained you?", "Who created you?", "Where do you come from?", "Who built you?"),
        ("Tell me who made you.",),
    ),
    small_talk(
        0.6,
        "No, I am a small language model.",
        ("Are you human?", "Are you a person?", "Are you a human being?", "Are you real?", "Are you a man or a woman?"),
        ("Are you a real person?",),
    ),
    small_talk(
        0.8,
        "You are welcome!",
        ("Thank you", "Thank you!", "Thanks!", "Thanks a lot!", "Thank you very much.", "Great, thank you!"),
        ("Thank you so much!", "Great, thanks!"),
    ),
    small_talk(
        0.6,
        "Goodbye! Have a nice day.",
        ("Bye", "Bye!", "Goodbye", "Goodbye!", "See you later!", "See you!", "Bye bye", "I have to go now."),
        ("Goodbye, see you later!",),
    ),
    small_talk(
        0.6,
        "Why did the chicken cross the road? To get to the other side.",
        ("Tell me a joke.", "Do you know a joke?", "Make me laugh.", "Say something funny.", "I want to hear a joke."),
        ("Can you tell me a joke?",),
    ),
    small_talk(
        0.6,
        f"The days of the week are {', '.join(DAYS[:-1])} and {DAYS[-1]}.",
        ("What are the days of the week?", "Name the days of the week.", "List the days of the week."),
        ("Tell me the days of the week.",),
        name="days and months",
    ),
    small_talk(
        0.6,
        f"The months of the year are {', '.join(list(MONTHS)[:-1])} and December.",
        ("What are the months of the year?", "Name the months of the year.", "List the months of the year."),
        ("Tell me the months of the year.",),
        name="days and months",
    ),
    small_talk(
        0.6,
        ", ".join("abcdefghijklmnopqrstuvwxyz") + ".",
        ("Say the alphabet.", "What is the alphabet?", "Write the alphabet.", "List the letters of the alphabet."),
        ("Can you say the alphabet?",),
        name="spelling",
    ),
    Topic(
        "names",
        2.0,
        ("My name is {name}.", "I am {name}.", "Hello, my name is {name}.", "Hi, I am {name}.", "Call me {name}."),
        ("Hello, I am {name}.",),
        tuple(Case({"name": name}, f"Nice to meet you, {name}!") for name in NAMES),
    ),
    small_talk(
        1.0,
        UNKNOWN_ANSWER,
        (
            "Who won the game?",
            "What is the weather like?",
            "Will it rain tomorrow?",
            "What time is it?",
            "What day is it today?",
            "How old am I?",
            "Where do I live?",
            "What did I eat?",
            "Who is the president?",
            "Who wrote this book?",
            "How far is the moon?",
            "What is the meaning of life?",
            "How do I fix my car?",
            "Where are my keys?",
            "What is the best film?",
            "Can you book a table?",
            "How much does it cost?",
        ),
        ("What is the weather like today?", "Who won the game yesterday?"),
        name="unknown",
    ),
    Topic(
        "unknown",
        2.0,
        (
            "What is the capital of {place}?",
            "Tell me about {place}.",
            "Where is {place}?",
            "What language do they speak in {place}?",
            "What is the currency of {place}?",
            "Which city is the capital of {place}?",
        ),
        ("What's the capital of {place}?",),
        _PLACES[40:],
        _PLACES[:40],
    ),
)
