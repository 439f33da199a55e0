"""Conversations and how they become text: ChatML, exactly as the model's chat template renders it.

It knows nothing about facts or token ids.
"""

from dataclasses import dataclass

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"

CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- endif %}"
)


@dataclass(frozen=True)
class Message:
    """One turn; `role` is "system", "user" or "assistant"."""

    role: str
    content: str


def render(messages: tuple[Message, ...], *, add_generation_prompt: bool = False) -> str:
    """Return what `CHAT_TEMPLATE` renders for these messages (the recipe checks that they are equal)."""
    text = "".join(f"{TURN_START}{m.role}\n{m.content}{TURN_END}\n" for m in messages)
    return f"{text}{TURN_START}assistant\n" if add_generation_prompt else text
