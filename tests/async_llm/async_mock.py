"""AsyncLLMs on the mock, runners that can be held or broken, and what the tests ask of any stream."""

import asyncio
import gc
import queue
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import backends.mock.plugin
from backends.mock.runner import MockRunner, next_token
from backends.mock.simple_bpe import SimpleBPE
from nanovllm import AsyncLLM, FinishReason, RequestOutput, RequestOutputKind, SamplingParams
from nanovllm.outputs import TokenLogprobs
from nanovllm.plugins import Batch, ModelRunner, ModelRunnerPlugin, StepOutput, TokenizerPlugin, Verdict, hookimpl
from nanovllm.plugins.manager import PluginManager

VOCAB_SIZE = 512
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
DELTA = RequestOutputKind.DELTA
PATIENCE_S = 20.0


def predicted(prompt: list[int], max_tokens: int = 12) -> list[int]:
    """What the mock continues a prompt with."""
    tokens = list(prompt)
    for _ in range(max_tokens):
        tokens.append(next_token(tokens, VOCAB_SIZE))
    return tokens[len(prompt) :]


BY_NAME_ONLY = Verdict(False, "only by name")


class OneRunner:
    """A plugin with one backend, "mine"."""

    def __init__(self, runner: ModelRunner) -> None:
        self.runner = runner

    @hookimpl
    def nanovllm_model_runners(self) -> list[ModelRunnerPlugin]:
        record = ModelRunnerPlugin(
            name="mine",
            factory=lambda source, config: self.runner,
            can_load=lambda source: BY_NAME_ONLY,
            needs_folder=False,
            tokenizer="simple-bpe",
        )
        return [record]


class OneTokenizer:
    """A plugin with one tokenizer, "mine"."""

    def __init__(self, tokenizer: SimpleBPE) -> None:
        self.tokenizer = tokenizer

    @hookimpl
    def nanovllm_tokenizers(self) -> list[TokenizerPlugin]:
        record = TokenizerPlugin(
            name="mine", factory=lambda source: self.tokenizer, can_load=lambda source: BY_NAME_ONLY
        )
        return [record]


def mock_plugins(*more: object) -> PluginManager:
    """The mock, and what else is given."""
    plugins = PluginManager()
    for plugin in (backends.mock.plugin, *more):
        plugins.register(plugin, getattr(plugin, "__name__", type(plugin).__name__))
    return plugins


def async_llm(runner: ModelRunner | None = None, tokenizer: SimpleBPE | None = None, **options: Any) -> AsyncLLM:
    """With small blocks and small limits; on the mock's own runner and tokenizer where none is given."""
    defaults: dict[str, Any] = {"backend": "mock", "block_size": 4, "num_kv_blocks": 256, "max_model_len": 64}
    more: list[object] = []
    if runner is not None:
        defaults["backend"] = "mine"
        more.append(OneRunner(runner))
    if tokenizer is not None:
        defaults["tokenizer_backend"] = "mine"
        more.append(OneTokenizer(tokenizer))
    return AsyncLLM("mock", plugins=mock_plugins(*more), **{**defaults, **options})


class HeldTokenizer(SimpleBPE):
    """Encodes a text only when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()
        self.may_end = threading.Event()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        self.begun.set()
        assert self.may_end.wait(PATIENCE_S), "nobody let the tokenizer go on"
        return super().encode(text[-8:])


class HeldRunner(MockRunner):
    """Computes a step only when it is let. begun: the sequence ids of each step, as soon as it is held."""

    def __init__(self) -> None:
        super().__init__(max_model_len=64)
        self.begun: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
        self.num_closed = 0
        self._steps = threading.Semaphore(0)

    def let(self, num_steps: int) -> None:
        self._steps.release(num_steps)

    async def next_step(self) -> list[int]:
        """Waits for a step to be held."""
        return await asyncio.to_thread(self.begun.get, timeout=PATIENCE_S)

    def execute(self, batch: Batch) -> StepOutput:
        self.begun.put(list(batch.seq_ids))
        assert self._steps.acquire(timeout=PATIENCE_S), "nobody let the step run"
        return super().execute(batch)

    def close(self) -> None:
        self.num_closed += 1


@dataclass
class Told:
    """All that a reader has been told of one continuation."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    cumulative_logprob: float | None = None
    end: tuple[FinishReason | None, int | str | None] = (None, None)


def add_up(outputs: list[RequestOutput], kind: RequestOutputKind) -> dict[int, Told]:
    """By continuation."""
    told: dict[int, Told] = {}
    for output in outputs:
        for one in output.outputs:
            before = told.get(one.index, Told()) if kind is DELTA else Told()
            told[one.index] = Told(
                before.text + one.text,
                before.token_ids + one.token_ids,
                before.logprobs + (one.logprobs or []),
                one.cumulative_logprob,
                (one.finish_reason, one.stop_reason),
            )
    return told


async def read(outputs: AsyncIterator[RequestOutput]) -> list[RequestOutput]:
    return [output async for output in outputs]


async def token_ids_of(outputs: AsyncIterator[RequestOutput]) -> list[int]:
    """What the last output, which tells all, holds."""
    return (await read(outputs))[-1].outputs[0].token_ids


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():
            await asyncio.sleep(0.001)


async def settle(llm: AsyncLLM) -> None:
    """Waits until nothing runs, and every block has come back."""

    def is_idle() -> bool:
        stats = llm.stats()
        return (stats.num_running, stats.num_waiting, stats.num_free_kv_blocks) == (0, 0, stats.num_kv_blocks)

    await until(is_idle)


def requests_in_memory() -> Counter[str]:
    """Objects that belong to a request, by the name of their class."""
    gc.collect()
    modules = ("nanovllm.async_llm", "nanovllm.engine.request", "nanovllm.engine.sequence", "nanovllm.outputs")
    return Counter(type(thing).__name__ for thing in gc.get_objects() if type(thing).__module__ in modules)
