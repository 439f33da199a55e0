"""AsyncLLM: the asynchronous front end. Prompts in, a stream of outputs out for each, from any number of event loops.

    a task --generate--> stream --add, abort--> commands --> engine thread: obeys commands, steps, sleeps
    a task <----------- stream <--------------- outputs <-----'   wakes each loop at most once a step

One thread makes the engine's steps; prompts are tokenized in others. What a slow reader has not read is merged in its
stream, so it holds back nobody and costs no more memory than its request. Knows nothing about scheduling, nor about
how its outputs are sent anywhere.
"""

import asyncio
import logging
import threading
import uuid
import weakref
from collections.abc import AsyncGenerator, Callable
from collections.abc import Sequence as Seq
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

from nanovllm.chat_template import Message
from nanovllm.config import EngineConfig
from nanovllm.engine.engine import LLMEngine
from nanovllm.engine.request import Request
from nanovllm.errors import BackendError, NanoVLLMError, RequestError
from nanovllm.frontend import Frontend
from nanovllm.model_info import ModelInfo
from nanovllm.outputs import CompletionOutput, EngineStats, FinishReason, RequestOutput
from nanovllm.plugins.interfaces import Tokenizer
from nanovllm.plugins.manager import PluginManager
from nanovllm.prompts import Prompt, PromptInput, read_prompt
from nanovllm.sampling_params import RequestOutputKind, SamplingParams

__all__ = ["AsyncLLM"]

logger = logging.getLogger(__name__)

_LOOP_PROMPT_LENGTH = 256
"""Characters or token ids up to which a prompt is tokenized where it was asked for: that costs less than a thread."""

_Waiter = asyncio.Future[None]


class AsyncLLM:
    """A loaded model, and the thread that runs it.

    model: folder, Hugging Face hub id or "tiny-chat"; the options are the fields of `EngineConfig`. Any thread and any
    event loop may use it. An async context manager: leaving it, `aclose` or `close` frees the model. The constructor
    blocks while the model loads.
    """

    def __init__(self, model: str = "tiny-chat", *, plugins: PluginManager | None = None, **options: Any) -> None:
        self._frontend = Frontend(EngineConfig.from_options({"model": str(model), **options}), plugins)
        self._engine = _EngineThread(self._frontend.engine)
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
        stream = _Stream(request, asyncio.get_running_loop())
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
    return isinstance(prompt, Seq) and len(prompt) <= _LOOP_PROMPT_LENGTH and not has_grammar


def _close(engine: "_EngineThread", pool: ThreadPoolExecutor) -> None:
    engine.close()
    pool.shutdown(wait=False)  # what is being tokenized ends by itself, and is then told that the model is closed


class _Stream:
    """One request's outputs on their way from the engine's thread to the task that reads them."""

    __slots__ = ("__weakref__", "_error", "_lock", "_unread", "_waiter", "loop", "request")

    def __init__(self, request: Request, loop: asyncio.AbstractEventLoop) -> None:
        self.request = request
        self.loop = loop
        self._lock = threading.Lock()
        self._unread: RequestOutput | None = None
        self._error: NanoVLLMError | None = None
        self._waiter: _Waiter | None = None

    def put(self, output: RequestOutput) -> _Waiter | None:
        """Any thread may. Returns what the reader waits for, if it does; its loop has to set it."""
        if output.error is not None:
            return self.fail(output.error)
        with self._lock:
            if self._unread is None:
                self._unread = output
            else:
                is_delta = self.request.output_kind is RequestOutputKind.DELTA
                self._unread = _merged(self._unread, output, is_delta=is_delta)
            return self._take_waiter()

    def fail(self, error: NanoVLLMError) -> _Waiter | None:
        """As `put`: the reader gets what it has not read, then the error."""
        with self._lock:
            self._error = error
            return self._take_waiter()

    async def take(self) -> RequestOutput:
        """What has not been read, as one output; waits for it. Only the request's own loop may."""
        while True:
            with self._lock:
                output, self._unread = self._unread, None
                if output is not None:
                    return output
                if self._error is not None:
                    raise self._error
                self._waiter = waiter = self.loop.create_future()
            await waiter

    def _take_waiter(self) -> _Waiter | None:
        waiter, self._waiter = self._waiter, None
        return waiter


def _merged(first: RequestOutput, second: RequestOutput, *, is_delta: bool) -> RequestOutput:
    """One output that tells what two tell, one after the other. The first, which nobody has seen, is used up."""
    completions = {completion.index: completion for completion in first.outputs}
    for completion in second.outputs:
        before = completions.get(completion.index)
        completions[completion.index] = _joined(before, completion) if before and is_delta else completion
    return replace(second, outputs=[completions[index] for index in sorted(completions)])


def _joined(first: CompletionOutput, second: CompletionOutput) -> CompletionOutput:
    """Two deltas as one. Extends the first one's lists, so that a long absence costs no more than its tokens."""
    first.token_ids.extend(second.token_ids)
    if first.logprobs is not None:
        first.logprobs.extend(second.logprobs or ())
    return replace(second, text=first.text + second.text, token_ids=first.token_ids, logprobs=first.logprobs)


class _EngineThread:
    """The thread that owns an engine: nobody else adds, aborts or steps.

    stats: of the engine, after its latest step or command. cause: the exception that stopped the engine, if one did.
    """

    def __init__(self, engine: LLMEngine) -> None:
        self.stats = engine.stats()
        self.cause: BaseException | None = None
        self._engine = engine
        self._commands: SimpleQueue[tuple[Callable[[Any], None], Any]] = SimpleQueue()  # a method below, its argument
        self._streams: dict[str, _Stream] = {}  # by id of an unfinished request
        self._waiters: list[_Waiter] = []  # of readers that have got something in this step
        self._is_closing = self._has_ended = False
        self._thread = threading.Thread(target=self._run, name="nanovllm-engine", daemon=True)
        self._thread.start()

    # -- for any thread -------------------------------------------------------------------------------------------

    def add(self, stream: _Stream) -> None:
        """Starts a request. One whose id is in use is told so through its stream."""
        self._commands.put((self._add, stream))
        self.check()  # afterwards: whoever finds that the thread lives knows that it will see the command

    def abort(self, stream: _Stream) -> None:
        """Ends the request of a stream that nobody reads any more."""
        self._commands.put((self._drop, stream))

    def abort_id(self, request_id: str) -> None:
        """Ends a request and tells its reader."""
        self._commands.put((self._abort, request_id))

    def close(self) -> None:
        """Ends the thread and closes the engine. Returns when that is done."""
        self._commands.put((self._stop, None))
        if threading.current_thread() is not self._thread:  # it may be this one that collects the garbage
            self._thread.join()

    def failure(self) -> BackendError | None:
        """Why no request is served any more; None while they are. A new exception at each call."""
        if not self._has_ended:
            return None
        if self.cause is None:
            return BackendError("the model was closed: no request of it goes on. Make a new AsyncLLM.")
        error = BackendError(f"the engine has stopped: {type(self.cause).__name__}: {self.cause}. Make a new AsyncLLM.")
        error.__cause__ = self.cause
        return error

    def check(self) -> None:
        """Raises `BackendError` where no request is served any more."""
        failure = self.failure()
        if failure is not None:
            raise failure

    # -- the thread itself ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._is_closing:
                if self._commands.empty() and self._engine.has_unfinished_requests:
                    self._step()
                else:
                    self._obey()
                self.stats = self._engine.stats()
                self._wake_readers()
        except BaseException as error:  # whatever it is, nobody may wait for ever
            logger.exception("the engine has stopped")
            self.cause = error
        self._end()

    def _step(self) -> None:
        for output in self._engine.step():
            stream = self._streams[output.request_id]
            if output.finished:
                del self._streams[output.request_id]
            self._notify(stream.put(output))
            if stream.loop.is_closed():
                self._drop(stream)

    def _obey(self) -> None:
        command, argument = self._commands.get()
        command(argument)

    def _add(self, stream: _Stream) -> None:
        try:
            self._engine.add(stream.request)
        except RequestError as error:
            self._notify(stream.fail(error))
        else:
            self._streams[stream.request.request_id] = stream

    def _drop(self, stream: _Stream) -> None:
        request_id = stream.request.request_id
        if self._streams.get(request_id) is stream:  # and not one that has taken the id since
            del self._streams[request_id]
            self._engine.abort(request_id)

    def _abort(self, request_id: str) -> None:
        stream = self._streams.get(request_id)
        if stream is None:
            return
        self._drop(stream)
        request = stream.request
        request.changed = [c for c in request.completions if c.seq.finish_reason is FinishReason.ABORT]
        output = request.output()
        assert output is not None, "a request that has ended has something to tell"
        self._notify(stream.put(output))

    def _stop(self, _: None) -> None:
        self._is_closing = True

    def _end(self) -> None:
        self._has_ended = True
        streams = list(self._streams.values())
        while not self._commands.empty():
            _, argument = self._commands.get()
            if isinstance(argument, _Stream):
                streams.append(argument)
        self._streams.clear()
        for stream in streams:
            error = self.failure()
            assert error is not None
            self._notify(stream.fail(error))
        self._wake_readers()
        try:
            self._engine.close()
            self.stats = self._engine.stats()
        except Exception:
            logger.exception("the engine could not be closed")

    def _notify(self, waiter: _Waiter | None) -> None:
        if waiter is not None:
            self._waiters.append(waiter)

    def _wake_readers(self) -> None:
        """Once for each loop, however many of its tasks wait: a loop that sleeps is woken through a socket."""
        waiters, self._waiters = self._waiters, []
        by_loop: dict[asyncio.AbstractEventLoop, list[_Waiter]] = {}
        for waiter in waiters:
            by_loop.setdefault(waiter.get_loop(), []).append(waiter)
        for loop, group in by_loop.items():
            with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
                loop.call_soon_threadsafe(_set_all, group)


def _set_all(waiters: list[_Waiter]) -> None:
    for waiter in waiters:
        if not waiter.done():  # as where its task was cancelled
            waiter.set_result(None)
