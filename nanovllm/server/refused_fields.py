"""Fields that users of OpenAI or vLLM know and that are not honoured here: refused, with the field to use instead.

In: the fields of a request that its model does not have. Out: an error that names one of them, or the rest, which
nobody knows. A value that asks for nothing (such as null, or use_beam_search=false) is no reason to refuse.
"""

import logging
from collections.abc import Mapping
from typing import Any

from nanovllm.server.errors import ApiError

__all__ = ["UnknownFields", "check_refused"]

logger = logging.getLogger("nanovllm.server")

_USE_FORMS = "use structured_outputs={{{}: ...}} or response_format instead"
_USE_TOOLS = "use tools and tool_choice instead"

_ADVICE = {
    "guided_json": _USE_FORMS.format('"json"'),
    "guided_regex": _USE_FORMS.format('"regex"'),
    "guided_choice": _USE_FORMS.format('"choice"'),
    "guided_grammar": _USE_FORMS.format('"grammar"'),
    "guided_decoding_backend": "leave it out; structured_outputs has one backend",
    "guided_whitespace_pattern": _USE_FORMS.format('"whitespace_pattern"'),
    "structural_tag": _USE_FORMS.format('"grammar"'),
    "functions": _USE_TOOLS,
    "function_call": _USE_TOOLS,
    "suffix": "put the prefix and the suffix into the prompt in the form that the model was trained with",
    "best_of": "use n, and choose among the answers",
    "use_beam_search": "use n with a temperature",
    "length_penalty": "it belongs to beam search; leave it out",
    "early_stopping": "it belongs to beam search; leave it out",
    "logits_processors": "use logit_bias, allowed_token_ids or bad_words",
    "logits_processor_pattern": "use logit_bias, allowed_token_ids or bad_words",
    "logprob_token_ids": "use logprobs with allowed_token_ids",
    "thinking_token_budget": "use max_completion_tokens",
    "repetition_detection": "use repetition_penalty",
    "prompt_embeds": "give prompt as text or token ids",
    "chat_template": "start the server with --chat-template; a template is a program, and not taken from requests",
    "audio": "this server answers with text",
    "prediction": "start the server with speculation",
    "web_search_options": "this server has no web search",
    "moderation": "this server does not moderate",
    "verbosity": "ask for it in the messages",
    "store": "keep the answers yourself",
    "kv_transfer_params": "leave it out; the KV cache is not transferred",
    "ec_transfer_params": "leave it out",
    "vllm_xargs": "leave it out; no extension reads it",
    "mm_processor_kwargs": "this server takes text only",
    "media_io_kwargs": "this server takes text only",
    "min_new_tokens": "use min_tokens",
    "max_new_tokens": "use max_tokens",
    "max_length": "use max_tokens",
    "num_return_sequences": "use n",
    "do_sample": "use temperature",
    "typical_p": "use min_p or top_p",
    "xtc_probability": "use min_p or top_p",
    "dry_multiplier": "use repetition_penalty",
}
"""What to do in place of each."""

_CHAT_ADVICE = {"echo": "use continue_final_message, and put the answer behind your message", "prompt": "use messages"}
_COMPLETION_ADVICE = {
    "messages": "use /v1/chat/completions",
    "tools": "use /v1/chat/completions",
    "max_completion_tokens": "use max_tokens",
    "top_logprobs": "use logprobs, which is a number here",
}

_ASKS_FOR_NOTHING: Mapping[str, tuple[object, ...]] = {
    "best_of": (1,),
    "length_penalty": (1, 1.0),
    "suffix": ("",),
    "do_sample": (True,),
    "verbosity": ("medium",),
    "typical_p": (1, 1.0),
    "dry_multiplier": (0, 0.0),
    "xtc_probability": (0, 0.0),
}


def check_refused(sent: Mapping[str, Any], *, is_chat: bool) -> None:
    """sent: what the request's model does not have. Raises `ApiError` (400)."""
    advice = _ADVICE | (_CHAT_ADVICE if is_chat else _COMPLETION_ADVICE)
    for name, value in sent.items():
        if name not in advice or value in (None, False, [], {}) or value in _ASKS_FOR_NOTHING.get(name, ()):
            continue
        raise ApiError(400, f"{name} is not honoured by this server: {advice[name]}.", param=name)


class UnknownFields:
    """Warns of each unknown field once. limit: names that are remembered, so that no client can fill the memory."""

    def __init__(self, limit: int = 1000) -> None:
        self._limit = limit
        self._seen: set[str] = set()

    def warn(self, sent: Mapping[str, Any]) -> None:
        """Known fields that are in `sent` without asking for anything are passed over."""
        for name in sent:
            if name in self._seen or name in _ADVICE or len(self._seen) >= self._limit:
                continue
            self._seen.add(name)
            logger.warning("requests carry the unknown field %.100r, which makes no difference", name)
