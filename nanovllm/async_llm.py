"""AsyncLLM: the asynchronous front end. Prompts in, a stream of outputs out for each, from any number of event loops.

    a task --generate--> stream --add, abort--> commands --> engine thread: obeys commands, steps, sleeps
    a task <----------- stream <--------------- outputs <-----'   wakes each loop at most once a step

One thread makes the engine's steps; prompts are tokenized in others. What a slow reader has not read is merged in its
stream, so it holds back nobody and costs no more memory than its request. Knows nothing about scheduling, nor about
how its outputs are sent anywhere.
"""

import asyncio
import uuid
import weakref
from collections.abc import AsyncGenerator, Callable
from collections.abc import Sequence as Seq
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from nanovllm.chat_template import Message
from nanovllm.config import EngineConfig
from nanovllm.engine.request import Request
from nanovllm.engine_thread import EngineThread
from nanovllm.errors import RequestError
from nanovllm.frontend import Frontend
from nanovllm.model_info import ModelInfo
from nanovllm.output_stream import OutputStream
from nanovllm.outputs import EngineStats, RequestOutput
from nanovllm.plugins.interfaces import Tokenizer
from nanovllm.plugins.manager import PluginManager
from nanovllm.prompts import Prompt, PromptInput, read_prompt
from nanovllm.sampling_params import SamplingParams

__all__ = ["AsyncLLM"]

_SHORT_PROMPT_LENGTH = 256
"""Characters or token ids up to which a prompt is tokenized in the event loop: a thread and back costs more."""


class AsyncLLM:
    """A loaded model, and the thread that runs it.

    model: folder, Hugging Face hub id or "tiny-chat"; the options are the fields of `EngineConfig`. Any thread and any
    event loop may use it. An async context manager: leaving it, `aclose` or `close` frees the model. The constructor
    blocks while the model loads.
    """

    def __init__(self, model: str = "tiny-chat", *, plugins: PluginManager | None = None, **options: Any) -> None:
        self._frontend = Frontend(EngineConfig.from_options({"model": str(model), **options}), plugins)
        self._engine = EngineThread(self._frontend.engine)
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="nanovllm-prompts")
        # Also when this object is dropped, and before the interpreter ends under the feet of a running step.
        self._close = weakref.finalize(self, _close, self._engine, self._pool)

    @property
    def model_info(self) -> ModelInfo:
        return self._frontend.engine.model_info

    @property
    def tokenizer(self) -> Tokenizer:
        return self._frontend.engine.tokenizer

    @property
    def has_chat_template(self) -> bool:
        return self._frontend.has_chat_template

    @property
    def chat_template(self) -> str | None:
        """The model's chat template, as Jinja text; None where it has none."""
        return self._frontend.chat_template

    @property
    def max_model_len(self) -> int:
        """Longest prompt + output, in tokens."""
        return self._frontend.engine.max_model_len

    @property
    def is_running(self) -> bool:
        """Whether requests are served: the model is not closed, nor has the engine stopped over an error."""
        return self._engine.failure() is None

    @property
    def errored(self) -> bool:
        """Whether the engine has stopped over an error; no request will be served any more."""
        return self._engine.cause is not None

    def get_default_sampling_params(self) -> SamplingParams:
        """What a request without parameters gets: the model's own, from generation_config.json, or the defaults."""
        return self._frontend.default_sampling_params()

    def generate(
        self,
        prompt: PromptInput,
        sampling_params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        add_special_tokens: bool = True,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Continues a prompt: `async for output in llm.generate(...)`, until an output says that it is finished.

        By `SamplingParams.output_kind` outputs hold all so far, what is new, or come once at the end; a reader that
        is late gets several as one. The request starts when the first is asked for. Leaving the loop, closing or
        dropping the iterator, and cancelling its task abort the request; its blocks are free for the next step.
        request_id: for `abort`; none that is in use. Raised where the first output is asked for: `RequestError`, which
        concerns no other request. Raised there or later: `BackendError`, where the model runner failed on this request
        or the engine has stopped or was closed.
        """

        def prepare() -> Request:
            return self._prepare(read_prompt(prompt), sampling_params, request_id, priority, add_special_tokens)

        return self._stream(prepare, is_short=_is_short(prompt, sampling_params))

    def chat(
        self,
        messages: Seq[Message],
        sampling_params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        **template_options: Any,
    ) -> AsyncGenerator[RequestOutput, None]:
        """As `generate`, for one conversation; `template_options` as in `render_chat`."""

        def prepare() -> Request:
            prompt = Prompt(self.render_chat(messages, **template_options))
            return self._prepare(prompt, sampling_params, request_id, priority, add_special_tokens=False)

        return self._stream(prepare, is_short=False)

    def render_chat(self, messages: Seq[Message], **template_options: Any) -> str:
        """The prompt text of a conversation. Options: chat_template (Jinja, in place of the model's),
        add_generation_prompt, tools, chat_template_kwargs."""
        return self._frontend.render_chat(messages, **template_options)

    async def abort(self, request_id: str) -> None:
        """Ends a request before the next step; its iterator gets a last output, whose unfinished continuations have
        the finish reason "abort". An id that is unknown or has finished is no error."""
        _check_type("request_id", request_id, str)
        self._engine.abort_id(request_id)

    def stats(self) -> EngineStats:
        """The engine's counters after the latest step, or after what was asked of it since."""
        return self._engine.stats

    def close(self) -> None:
        """Ends what runs with a `BackendError` and frees the model; waits for the step that is being computed."""
        self._close()

    async def aclose(self) -> None:
        """As `close`, while the event loop goes on."""
        await asyncio.to_thread(self.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    # -- inside ---------------------------------------------------------------------------------------------------

    def _prepare(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        request_id: str | None,
        priority: int,
        add_special_tokens: bool,
    ) -> Request:
        _check_type("sampling_params", params, SamplingParams | None)
        _check_type("request_id", request_id, str | None)
        _check_type("priority", priority, int)
        return self._frontend.prepare(
            prompt,
            params,
            request_id=uuid.uuid4().hex if request_id is None else request_id,  # no user's own is like it
            priority=priority,
            add_special_tokens=add_special_tokens,
        )

    async def _stream(self, prepare: Callable[[], Request], *, is_short: bool) -> AsyncGenerator[RequestOutput, None]:
        self._engine.check()
        request = prepare() if is_short else await self._in_pool(prepare)
        stream = OutputStream(request, asyncio.get_running_loop())
        finished = False
        try:
            self._engine.add(stream)
            while not finished:
                output = await stream.take()
                finished = output.finished
                yield output
        finally:
            if not finished:
                self._engine.abort(stream)

    async def _in_pool(self, prepare: Callable[[], Request]) -> Request:
        try:
            future = self._pool.submit(prepare)
        except RuntimeError:  # the pool was shut down after the check
            self._engine.check()
            raise
        return await asyncio.wrap_future(future)


def _check_type(name: str, value: object, kind: Any) -> None:
    if not isinstance(value, kind):
        raise RequestError(f"{name} is {value!r}; it must be of type {getattr(kind, '__name__', kind)}.")


def _is_short(prompt: PromptInput, params: SamplingParams | None) -> bool:
    """Whether preparing the request takes no time to speak of."""
    has_grammar = getattr(params, "structured_outputs", None) is not None
    return isinstance(prompt, Seq) and len(prompt) <= _SHORT_PROMPT_LENGTH and not has_grammar


def _close(engine: "EngineThread", pool: ThreadPoolExecutor) -> None:
    engine.close()
    pool.shutdown(wait=False)  # what is being tokenized ends by itself, and is then told that the model is closed
