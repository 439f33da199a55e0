"""LLM: the offline front end. Prompts in, finished (or streamed) outputs out; vLLM's names where it has them."""

import itertools
from collections.abc import Generator, Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, cast

from nanovllm.chat_template import Message
from nanovllm.config import EngineConfig
from nanovllm.engine.request import Request
from nanovllm.errors import BackendError, BackendLostError, RequestError
from nanovllm.frontend import Frontend
from nanovllm.model_info import ModelInfo
from nanovllm.outputs import EngineStats, RequestOutput
from nanovllm.plugins.interfaces import Tokenizer
from nanovllm.plugins.manager import PluginManager
from nanovllm.progress import Progress
from nanovllm.prompts import Prompt, PromptInput, read_prompts
from nanovllm.sampling_params import RequestOutputKind, SamplingParams

__all__ = ["LLM"]


@dataclass(slots=True)
class _Box:
    """What one collector has not read yet. error: why some of its requests will never finish."""

    outputs: list[RequestOutput] = field(default_factory=list)
    error: BackendError | None = None

    def take(self) -> list[RequestOutput]:
        """What there is to read, up to the first request that the model runner failed on; then raises its error."""
        outputs = list(itertools.takewhile(lambda output: output.error is None, self.outputs))
        del self.outputs[: len(outputs)]
        error = self.outputs[0].error if self.outputs else self.error
        if error is not None and not outputs:
            raise error
        return outputs


class LLM:
    """A loaded model.

    model: folder, Hugging Face hub id or "tiny-chat"; the options are the fields of `EngineConfig`. Not thread-safe.
    A context manager: leaving it, or `close`, frees the model.
    """

    def __init__(self, model: str = "tiny-chat", *, plugins: PluginManager | None = None, **options: Any) -> None:
        config = EngineConfig.from_options({"model": str(model), **options})
        self._frontend = Frontend(config, plugins)
        self._engine = self._frontend.engine
        self._boxes: dict[str, _Box] = {}  # by id of an unfinished request: where its outputs are waited for

    @property
    def model_info(self) -> ModelInfo:
        return self._engine.model_info

    @property
    def tokenizer(self) -> Tokenizer:
        return self._engine.tokenizer

    @property
    def has_chat_template(self) -> bool:
        return self._frontend.has_chat_template

    @property
    def max_model_len(self) -> int:
        """Longest prompt + output, in tokens."""
        return self._engine.max_model_len

    def get_default_sampling_params(self) -> SamplingParams:
        """What a request without parameters gets: the model's own, from generation_config.json, or the defaults."""
        return self._frontend.default_sampling_params()

    def generate(
        self,
        prompts: PromptInput | Seq[PromptInput],
        sampling_params: SamplingParams | Seq[SamplingParams] | None = None,
        *,
        progress: bool | None = None,
        priority: Seq[int] | None = None,
    ) -> list[RequestOutput]:
        """Continues every prompt; outputs in the prompts' order.

        prompts: a text, token ids, a mapping (see `nanovllm.prompts`), or a list of them. sampling_params: for all, or
        one each; None for the model's own. progress: a line on stderr; None shows it on a terminal. priority: one
        number for each prompt, lower first, for the "priority" policy. Every prompt is checked before any is started:
        `RequestError` leaves the engine as it was. `BackendError`: the model runner failed on one; all are ended.
        """
        return self._run(self._prepare(read_prompts(prompts), sampling_params, priority), progress)

    def chat(
        self,
        messages: Seq[Message] | Seq[Seq[Message]],
        sampling_params: SamplingParams | Seq[SamplingParams] | None = None,
        *,
        progress: bool | None = None,
        **template_options: Any,
    ) -> list[RequestOutput]:
        """As `generate`, for a conversation or a list of them; `template_options` as in `render_chat`."""
        conversations = cast(Seq[Seq[Message]], [messages] if _is_conversation(messages) else messages)
        prompts = [Prompt(self.render_chat(conversation, **template_options)) for conversation in conversations]
        return self._run(self._prepare(prompts, sampling_params, add_special_tokens=False), progress)

    def stream(
        self,
        prompts: PromptInput | Seq[PromptInput],
        sampling_params: SamplingParams | Seq[SamplingParams] | None = None,
    ) -> Generator[RequestOutput, None, None]:
        """Yields outputs as they grow, each request's until it is finished; by `SamplingParams.output_kind` they hold
        all so far or what is new. Closing the iterator aborts what has not finished."""
        return self._stream(self._prepare(read_prompts(prompts), sampling_params))

    def stream_chat(
        self, messages: Seq[Message], sampling_params: SamplingParams | None = None, **template_options: Any
    ) -> Generator[RequestOutput, None, None]:
        """As `stream`, for one conversation."""
        prompt = Prompt(self.render_chat(messages, **template_options))
        return self._stream(self._prepare([prompt], sampling_params, add_special_tokens=False))

    def render_chat(self, messages: Seq[Message], **template_options: Any) -> str:
        """The prompt text of a conversation. Options: chat_template (Jinja, in place of the model's),
        add_generation_prompt, tools, chat_template_kwargs."""
        return self._frontend.render_chat(messages, **template_options)

    def stats(self) -> EngineStats:
        """A snapshot of the engine's counters."""
        return self._engine.stats()

    def close(self) -> None:
        """Aborts what runs and frees the model. The object is of no use afterwards."""
        self._engine.close()
        self._report_lost(BackendError("the model was closed before the request had finished."))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- inside ---------------------------------------------------------------------------------------------------

    def _prepare(
        self,
        prompts: Seq[Prompt],
        sampling_params: SamplingParams | Seq[SamplingParams] | None,
        priority: Seq[int] | None = None,
        *,
        add_special_tokens: bool = True,
    ) -> list[Request]:
        params = _one_each("sampling_params", sampling_params, SamplingParams | None, len(prompts))
        priorities = _one_each("priority", 0 if priority is None else priority, int, len(prompts))
        return [
            self._frontend.prepare(prompt, param, priority=prio, add_special_tokens=add_special_tokens)
            for prompt, param, prio in zip(prompts, params, priorities, strict=True)
        ]

    def _run(self, requests: list[Request], progress: bool | None) -> list[RequestOutput]:
        for request in requests:
            request.output_kind = RequestOutputKind.FINAL_ONLY
        finished: dict[str, RequestOutput] = {}
        with Progress(len(requests), self.stats(), shown=progress) as line:
            for outputs in self._collect(requests):
                finished.update((output.request_id, output) for output in outputs)
                line.update(self.stats(), len(outputs))
        return [finished[request.request_id] for request in requests]

    def _stream(self, requests: list[Request]) -> Generator[RequestOutput, None, None]:
        for outputs in self._collect(requests):
            yield from outputs

    def _collect(self, requests: list[Request]) -> Iterator[list[RequestOutput]]:
        """Starts the requests and yields, after each step, the outputs that concern them, until all have finished.

        Several collectors may be open at once (a stream, and a generate inside its loop): whoever steps the engine
        puts each output into the box of its collector.
        """
        box = _Box()
        num_unfinished = len(requests)
        try:
            for request in requests:
                self._boxes[request.request_id] = box
                self._engine.add(request)
            while num_unfinished:
                if not box.outputs and box.error is None:
                    self._step()
                outputs = box.take()
                num_unfinished -= sum(output.finished for output in outputs)
                yield outputs
        finally:
            for request in requests:
                self._engine.abort(request.request_id)
                self._boxes.pop(request.request_id, None)

    def _step(self) -> None:
        try:
            outputs = self._engine.step()
        except BackendLostError as error:
            self._report_lost(error)
            raise
        for output in outputs:
            self._boxes[output.request_id].outputs.append(output)
            if output.finished:
                del self._boxes[output.request_id]

    def _report_lost(self, error: BackendError) -> None:
        """Tells the collectors of requests that will get no more outputs."""
        for box in self._boxes.values():
            box.error = error


def _is_conversation(messages: Seq[Any]) -> bool:
    return not messages or isinstance(messages, str) or isinstance(messages[0], Mapping)


def _one_each(name: str, value: Any, kind: Any, count: int) -> list[Any]:
    """`count` values of `kind`, where one for all, or one each, was given."""
    if isinstance(value, kind):
        return [value] * count
    if not isinstance(value, Seq) or not all(isinstance(item, kind) for item in value):
        raise RequestError(
            f"{name} is {value!r}; it must be of type {getattr(kind, '__name__', kind)}, or a list of that."
        )
    if len(value) != count:
        raise RequestError(f"{name} has {len(value)} entries for {count} prompts; give one for all, or one each.")
    return list(value)
