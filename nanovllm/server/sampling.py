"""From a request's fields to SamplingParams: what was not given is the model's own default, as in vLLM.

Knows nothing about prompts and answers.
"""

from dataclasses import fields, replace
from typing import Any

from nanovllm.errors import SamplingParamsError
from nanovllm.sampling_params import RequestOutputKind, SamplingParams
from nanovllm.server.errors import ApiError
from nanovllm.server.protocol.base import RequestModel
from nanovllm.server.protocol.chat import ChatRequest
from nanovllm.server.protocol.completions import CompletionRequest
from nanovllm.server.protocol.generation import GenerationRequest, ResponseFormat
from nanovllm.server.settings import ServerSettings
from nanovllm.structured_outputs import StructuredOutputsParams

__all__ = ["chat_params", "completion_params", "step_params"]

_WHITESPACE = "[ ]?"
"""What may stand between JSON tokens of a response_format: a weak model would go on with white space for ever."""

_MAX_LOGPROBS = 20  # OpenAI's limit, and vLLM's: more would make an answer as long as the vocabulary


def completion_params(request: CompletionRequest, defaults: SamplingParams, settings: ServerSettings) -> SamplingParams:
    """Raises `ApiError` or `SamplingParamsError`. max_tokens is 16 where the request says nothing, as in OpenAI's API;
    0, which is for echo alone, is 1 here: what reads the prompt samples a token."""
    max_tokens = 16 if request.max_tokens is None else request.max_tokens
    if max_tokens == 0 and not request.echo:
        raise ApiError(400, "max_tokens is 0; without echo it must be at least 1.", param="max_tokens")
    _check_limits(request, settings)
    _check_logprobs("logprobs", request.logprobs)
    prompt_logprobs = request.prompt_logprobs
    if prompt_logprobs is None and request.echo:
        prompt_logprobs = request.logprobs
    params = _params(request, defaults, max_tokens=max(max_tokens, 1), logprobs=request.logprobs)
    return params if prompt_logprobs is None else replace(params, prompt_logprobs=prompt_logprobs)


def chat_params(
    request: ChatRequest,
    defaults: SamplingParams,
    settings: ServerSettings,
    *,
    default_max_tokens: int | None,
    forced_form: StructuredOutputsParams | None,
) -> SamplingParams:
    """forced_form: of a tool call that the request demands; it goes before response_format, which is for text.
    Raises `ApiError` or `SamplingParamsError`."""
    if request.top_logprobs and not request.logprobs:
        raise ApiError(400, "top_logprobs is given without logprobs; set logprobs to true.", param="top_logprobs")
    _check_limits(request, settings)
    _check_logprobs("top_logprobs", request.top_logprobs)
    wanted = request.max_completion_tokens or request.max_tokens or default_max_tokens
    num_logprobs = (request.top_logprobs or 0) if request.logprobs else None
    params = _params(request, defaults, max_tokens=wanted, logprobs=num_logprobs)
    return params if forced_form is None else replace(params, structured_outputs=forced_form)


def step_params(request: RequestModel) -> SamplingParams:
    """For one token and nothing else, of which no default of the model's is part."""
    options = request.model_dump(exclude_none=True, exclude={"token_ids"})
    kind = RequestOutputKind.FINAL_ONLY
    return SamplingParams.from_options(options | {"max_tokens": 1, "detokenize": False, "output_kind": kind})


def _params(request: GenerationRequest, defaults: SamplingParams, **settled: Any) -> SamplingParams:
    kind = RequestOutputKind.DELTA if request.stream else RequestOutputKind.FINAL_ONLY
    options = {field.name: getattr(defaults, field.name) for field in fields(defaults)}
    sent = request.model_dump(include=set(options), exclude_none=True)
    form = _response_form(request)
    if form is not None:
        sent["structured_outputs"] = form
    return SamplingParams.from_options(options | sent | settled | {"output_kind": kind})


def _response_form(request: GenerationRequest) -> StructuredOutputsParams | None:
    """What response_format asks for, if it asks for anything."""
    asked: ResponseFormat | None = request.response_format
    if asked is None or asked.type == "text":
        return None
    if request.structured_outputs is not None:
        raise ApiError(400, "response_format and structured_outputs are both given; give one.", param="response_format")
    if asked.type == "json_object":
        return StructuredOutputsParams(json_object=True, whitespace_pattern=_WHITESPACE)
    schema = None if asked.json_schema is None else asked.json_schema.schema_
    if schema is None:
        name = "response_format.json_schema.schema"
        raise ApiError(400, f"{name} is missing; it must be a JSON schema.", param="response_format")
    try:
        return StructuredOutputsParams(json=schema, whitespace_pattern=_WHITESPACE)
    except SamplingParamsError as error:
        raise ApiError(400, str(error), param="response_format") from error


def _check_limits(request: GenerationRequest, settings: ServerSettings) -> None:
    if request.stream_options is not None and not request.stream:
        raise ApiError(400, "stream_options is given without stream; set stream to true.", param="stream_options")
    if request.n is not None and request.n > settings.max_n:
        raise ApiError(400, f"n is {request.n}; this server allows at most {settings.max_n}.", param="n")
    if isinstance(request.stop, list) and len(request.stop) > settings.max_stop:
        message = f"stop has {len(request.stop)} strings; this server allows at most {settings.max_stop}."
        raise ApiError(400, message, param="stop")
    if request.prompt_logprobs is not None and request.stream:
        raise ApiError(400, "prompt_logprobs is given with stream; leave one of them out.", param="prompt_logprobs")
    _check_logprobs("prompt_logprobs", request.prompt_logprobs)


def _check_logprobs(name: str, wanted: int | None) -> None:
    if wanted is not None and not 0 <= wanted <= _MAX_LOGPROBS:
        raise ApiError(400, f"{name} is {wanted}; this server allows 0 to {_MAX_LOGPROBS}.", param=name)
