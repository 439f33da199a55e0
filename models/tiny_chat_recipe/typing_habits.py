"""How people type: lower case, missing marks, small typing errors. In: a clean template; out: one as typed."""

import random

_OPENINGS = (
    "Hello! ",
    "Hi! ",
    "Hi, ",
    "Hey, ",
    "Please tell me: ",
    "Tell me: ",
    "Quick question: ",
    "I have a question. ",
    "One more question: ",
    "Answer this: ",
    "Please, ",
    "So, ",
    "OK, ",
)
_CLOSINGS = (" Please.", " Thanks!", " Thank you.", " Thank you!", " I want to know.")


def _with_typing_error(template: str, rng: random.Random) -> str:
    """Swap two inner letters of one word outside the slots, if there is a word of four letters or more."""
    words = template.split(" ")
    candidates = [i for i, word in enumerate(words) if len(word) >= 4 and word.isalpha()]
    if not candidates:
        return template
    index = rng.choice(candidates)
    word = words[index]
    at = rng.randint(1, len(word) - 3)
    words[index] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(words)


def _with_frame(template: str, rng: random.Random) -> str:
    """Put an opening before the template or a closing after it."""
    if rng.random() < 0.6:
        return rng.choice(_OPENINGS) + template
    return template + rng.choice(_CLOSINGS)


def _with_other_marks(template: str, rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.5:
        return template.rstrip("?.!")
    if kind < 0.6:
        return template.rstrip("?.!") + rng.choice((" ?", "??", "...", "!", "?!"))
    if kind < 0.75:
        return template.replace("'", "\N{RIGHT SINGLE QUOTATION MARK}")
    if kind < 0.9:
        return template.replace("What's", "Whats").replace("'", "")
    return template.replace(" ", "  ", 1)


def fill(template: str, slots: dict[str, str], rng: random.Random) -> str:
    """Return the template with its slots filled, in most cases with some habit of people who type quickly."""
    has_slots = "{" in template
    if has_slots and rng.random() < 0.2:
        template = _with_frame(template, rng)
    if rng.random() < 0.25:
        template = _with_other_marks(template, rng)
    if rng.random() < 0.04:
        template = _with_typing_error(template, rng)
    lower = rng.random() < 0.2
    if lower:
        template = template.lower()
        slots = {name: value.lower() for name, value in slots.items()}
    text = template.format(**slots)
    return text if lower else text[:1].upper() + text[1:]
