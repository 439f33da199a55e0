"""Errors as OpenAI's clients read them: {"error": {"message", "type", "param", "code"}}, all four always there.

In: exceptions of handlers, of FastAPI and of the engine. Out: responses, or the bodies of error events. Knows no route.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from nanovllm.errors import BackendError, NanoVLLMError, PromptError, RequestError

__all__ = ["ApiError", "ErrorBody", "add_error_handlers", "api_error", "error_response"]

logger = logging.getLogger("nanovllm.server")

ErrorBody = dict[str, dict[str, str | None]]

_LONGEST_VALUE = 80
"""Characters of a refused value that a message repeats."""

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(HTTPException):
    """What a client is told instead of an answer.

    param: the field at fault. code: OpenAI's word for the fault, where it has one. type: by default the one that
    belongs to the status: "invalid_request_error" below 500, "server_error" above, and so on.
    """

    def __init__(
        self,
        status_code: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        type: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status_code, detail=message, headers=headers)
        self.message = message
        self.param = param
        self.code = code
        self.type = type or _TYPES.get(status_code, "invalid_request_error" if status_code < 500 else "server_error")

    def body(self) -> ErrorBody:
        """The error object, as a response or an error event carries it."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def api_error(error: Exception) -> ApiError:
    """What a client is told of any exception; of one that is nobody's mistake but ours, no more than that it was."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestError):
        param = "prompt" if isinstance(error, PromptError) else _first_name(str(error))
        return ApiError(400, str(error), param=param)
    if isinstance(error, NanoVLLMError):
        return ApiError(500, str(error))
    if isinstance(error, RequestValidationError):
        return _validation_error(error)
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail), headers=error.headers)
    return ApiError(500, "the server failed on this request; its log says more.")


def error_response(error: Exception) -> JSONResponse:
    """The response to an exception that was raised before an answer began."""
    told = api_error(error)
    return JSONResponse(told.body(), told.status_code, headers=told.headers)


def add_error_handlers(app: FastAPI) -> None:
    """Every exception becomes an error object; FastAPI's 422 is a 400."""

    async def handle(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error, BackendError):
            logger.error("%s %s failed: %s", request.method, request.url.path, error)
        if isinstance(error, HTTPException) and not isinstance(error, ApiError) and error.status_code in (404, 405):
            message = f"there is no {request.method} {request.url.path} on this server; see /openapi.json."
            error = ApiError(error.status_code, message, headers=error.headers)
        return error_response(error)

    for kind in (HTTPException, RequestValidationError, NanoVLLMError, Exception):
        app.add_exception_handler(kind, handle)


def _validation_error(error: RequestValidationError) -> ApiError:
    """Of several complaints, those about the first field: a union has one for each of its members."""
    complaints: Sequence[Mapping[str, Any]] = error.errors()
    place = tuple(complaints[0]["loc"])
    if place in ((), ("body",)):
        return ApiError(400, _body_message(complaints[0]))
    param = str(place[1] if len(place) > 1 else place[0])
    same = [entry for entry in complaints if entry["loc"][: len(place[:2])] == place[:2]]
    messages = list(dict.fromkeys(_lower(entry["msg"].removeprefix("Value error, ")) for entry in same))
    if complaints[0]["type"] == "missing":
        return ApiError(400, f"{_path(place)} is missing: it is required.", param=param)
    where = _path(place) if len(same) == 1 else param
    return ApiError(400, f"{where} is {_shown(complaints[0]['input'])}: {'; or '.join(messages)}.", param=param)


def _body_message(complaint: Mapping[str, Any]) -> str:
    if isinstance(complaint["input"], bytes):
        return "the body is not declared as JSON; send it with the header Content-Type: application/json."
    if complaint["type"] == "missing":
        return "the body is missing; send a JSON object."
    return f"the body is {_shown(complaint['input'])}; send a JSON object."


def _path(place: Sequence[int | str]) -> str:
    """As "messages[0].role", without FastAPI's "body"."""
    text = ""
    for step in place[1:]:
        text += f"[{step}]" if isinstance(step, int) else f".{step}"
    return text.removeprefix(".") or str(place[0])


def _shown(value: object) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, default=repr)
    except (ValueError, RecursionError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + "..."


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


def _first_name(message: str) -> str | None:
    """The core's messages begin with the name of the field at fault, where there is one."""
    word = message.split(" ", 1)[0]
    return word if "_" in word or word in _PLAIN_NAMES else None


_PLAIN_NAMES = frozenset({"n", "seed", "stop", "temperature", "priority", "logprobs", "messages"})
