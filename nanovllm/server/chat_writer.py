"""ChatWriter: the engine's outputs as a chat answer, whole or chunk by chunk.

In: outputs of one conversation, and what the parser of each continuation makes of its text. Out: choices of the
protocol. Knows nothing about tool calls' and reasoning's form, nor about how chunks are sent.
"""

from collections.abc import Callable, Iterator

from nanovllm.outputs import CompletionOutput, FinishReason, RequestOutput
from nanovllm.server.chat_parser import (
    ChatEvent,
    ChatParser,
    ContentDelta,
    ReasoningDelta,
    ToolArgumentsDelta,
    ToolCallStart,
)
from nanovllm.server.generation import Job, UsageCounter
from nanovllm.server.logprobs import LogprobFormat
from nanovllm.server.protocol.chat import (
    ChatChoice,
    ChatChunkChoice,
    ChatDelta,
    ChatFinishReason,
    ChatLogprobs,
    ChatMessage,
    ChatRequest,
    FunctionCallDelta,
    FunctionMade,
    ToolCallDelta,
    ToolCallMade,
)

__all__ = ["ChatWriter"]


class ChatWriter:
    """make_parser: makes a parser for one continuation."""

    def __init__(
        self, body: ChatRequest, job: Job, logprobs: LogprobFormat, make_parser: Callable[[], ChatParser]
    ) -> None:
        self.body = body
        self.job = job
        self.counter = UsageCounter([job])
        self._logprobs = logprobs
        self._parsers = [make_parser() for _ in range(job.params.n)]
        self._has_calls = [False] * job.params.n

    def choice(self, completion: CompletionOutput) -> ChatChoice:
        """A finished continuation, whole."""
        message = _Message()
        for event in self._events(completion):
            message.add(event)
        return ChatChoice(
            index=completion.index,
            message=message.message(),
            logprobs=self._chat_logprobs(completion),
            finish_reason=self._finish_reason(completion),
            stop_reason=completion.stop_reason,
            token_ids=completion.token_ids if self.body.return_token_ids else None,
        )

    def first_choices(self) -> list[ChatChunkChoice]:
        """What stands at the beginning of a stream: that an assistant speaks."""
        delta = ChatDelta(role="assistant", content="")
        return [
            ChatChunkChoice(index=index, delta=delta, logprobs=None, finish_reason=None)
            for index in range(self.job.params.n)
        ]

    def chunk_choices(self, output: RequestOutput) -> Iterator[ChatChunkChoice]:
        """What is new, in order; the end of a continuation is a chunk of its own."""
        for completion in output.outputs:
            yield from self._news(completion)
            if completion.finish_reason is not None:
                yield ChatChunkChoice(
                    index=completion.index,
                    delta=ChatDelta(),
                    logprobs=None,
                    finish_reason=self._finish_reason(completion),
                    stop_reason=completion.stop_reason,
                )

    def _news(self, completion: CompletionOutput) -> Iterator[ChatChunkChoice]:
        """A chunk for each event; log-probabilities and ids of all their tokens come with the first."""
        logprobs = self._chat_logprobs(completion) if completion.token_ids else None
        token_ids = completion.token_ids if self.body.return_token_ids else None
        deltas = [_delta(event) for event in self._events(completion)]
        if not deltas and (logprobs or token_ids):
            deltas = [ChatDelta(content="")]
        for delta in deltas:
            yield ChatChunkChoice(
                index=completion.index, delta=delta, logprobs=logprobs, finish_reason=None, token_ids=token_ids
            )
            logprobs = token_ids = None

    def _events(self, completion: CompletionOutput) -> list[ChatEvent]:
        parser = self._parsers[completion.index]
        events = parser.feed(completion.text) if completion.text else []
        if completion.finish_reason is not None:
            events = [*events, *parser.finish()]
        if self.body.include_reasoning is False:
            events = [event for event in events if not isinstance(event, ReasoningDelta)]
        if any(isinstance(event, ToolCallStart) for event in events):
            self._has_calls[completion.index] = True
        return events

    def _chat_logprobs(self, completion: CompletionOutput) -> ChatLogprobs | None:
        if completion.logprobs is None:
            return None
        return self._logprobs.chat(completion.logprobs, self.body.top_logprobs or 0)

    def _finish_reason(self, completion: CompletionOutput) -> ChatFinishReason:
        if completion.finish_reason is not FinishReason.STOP:
            return "length"
        return "tool_calls" if self._has_calls[completion.index] else "stop"


class _Message:
    """An answer's message, from its events."""

    def __init__(self) -> None:
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, ToolCallStart] = {}
        self._arguments: dict[int, list[str]] = {}

    def add(self, event: ChatEvent) -> None:
        match event:
            case ContentDelta(text):
                self._content.append(text)
            case ReasoningDelta(text):
                self._reasoning.append(text)
            case ToolCallStart():
                self._calls[event.index] = event
                self._arguments[event.index] = []
            case ToolArgumentsDelta(index, text):
                self._arguments[index].append(text)

    def message(self) -> ChatMessage:
        calls = [
            ToolCallMade(
                id=call.id, function=FunctionMade(name=call.name, arguments="".join(self._arguments[call.index]))
            )
            for call in self._calls.values()
        ]
        content = "".join(self._content)
        return ChatMessage(
            content=None if calls and not content else content,
            reasoning_content="".join(self._reasoning) or None,
            tool_calls=calls or None,
        )


def _delta(event: ChatEvent) -> ChatDelta:
    match event:
        case ContentDelta(text):
            return ChatDelta(content=text)
        case ReasoningDelta(text):
            return ChatDelta(reasoning_content=text)
        case ToolCallStart(index, call_id, name):
            function = FunctionCallDelta(name=name, arguments="")
            return ChatDelta(tool_calls=[ToolCallDelta(index=index, id=call_id, type="function", function=function)])
        case ToolArgumentsDelta(index, text):
            return ChatDelta(tool_calls=[ToolCallDelta(index=index, function=FunctionCallDelta(arguments=text))])
