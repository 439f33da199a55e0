"""Reads an event stream as the tests look at it."""

import json
from typing import Any


def events_of(text: str) -> list[Any]:
    """The data of each event, in order; the last must be [DONE], which is left out."""
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks), text
    assert blocks[-1] == "data: [DONE]", text
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-1]]


def added_up(chunks: list[Any]) -> dict[int, dict[str, Any]]:
    """Completion chunks as the choices that they make."""
    choices: dict[int, dict[str, Any]] = {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        whole = choices.setdefault(choice["index"], {"index": choice["index"], "text": "", "logprobs": None})
        whole["text"] += choice["text"]
        whole["token_ids"] = whole.get("token_ids", []) + choice.get("token_ids", [])
        if choice["logprobs"] is not None:
            before = whole["logprobs"] or {name: [] for name in choice["logprobs"]}
            whole["logprobs"] = {name: before[name] + new for name, new in choice["logprobs"].items()}
        for name in ("finish_reason", "stop_reason"):
            assert whole.get(name) is None, "nothing comes after the end"
            whole[name] = choice[name]
    return choices


def chat_added_up(chunks: list[Any]) -> dict[int, dict[str, Any]]:
    """Chat chunks as the content, the log-probabilities and the end of each choice."""
    choices: dict[int, dict[str, Any]] = {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        whole = choices.setdefault(choice["index"], {"content": "", "logprobs": [], "finish_reason": None})
        whole["content"] += choice["delta"].get("content", "")
        whole["logprobs"] += (choice["logprobs"] or {}).get("content", [])
        whole["finish_reason"] = choice["finish_reason"]
    return choices
