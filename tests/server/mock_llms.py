"""AsyncLLMs on the mock whose runners can be held or poisoned, and what is asked of them."""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import backends.mock.plugin
from backends.mock.runner import MockRunner, next_token
from nanovllm import AsyncLLM
from nanovllm.plugins import Batch, ModelRunner, ModelRunnerPlugin, StepOutput, Verdict, hookimpl
from nanovllm.plugins.manager import PluginManager

MAX_MODEL_LEN = 256
PATIENCE_S = 30.0
CHAT_TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
_VOCAB_SIZE = 512


def predicted(prompt: list[int], num_tokens: int) -> list[int]:
    """What the mock continues a prompt with, greedily."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(next_token(tokens, _VOCAB_SIZE))
    return tokens[len(prompt) :]


class HeldRunner(MockRunner):
    """Computes a step only when it is let. begun: gets a step's number of sequences as soon as it is held."""

    def __init__(self) -> None:
        super().__init__(max_model_len=MAX_MODEL_LEN)
        self.begun: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._steps = threading.Semaphore(0)

    def let(self, num_steps: int) -> None:
        self._steps.release(num_steps)

    def wait_for_step(self) -> int:
        return self.begun.get(timeout=PATIENCE_S)

    def execute(self, batch: Batch) -> StepOutput:
        self.begun.put(batch.num_seqs)
        assert self._steps.acquire(timeout=PATIENCE_S), "nobody let the step run"
        return super().execute(batch)


class PoisonedRunner(MockRunner):
    """Raises in the steps that hold the token `poison`."""

    def __init__(self, poison: int) -> None:
        super().__init__(max_model_len=MAX_MODEL_LEN)
        self._poison = poison

    def execute(self, batch: Batch) -> StepOutput:
        if self._poison in batch.token_ids:
            raise RuntimeError("the device fell off the bus")
        return super().execute(batch)


class _OneRunner:
    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner

    @hookimpl
    def nanovllm_model_runners(self) -> list[ModelRunnerPlugin]:
        record = ModelRunnerPlugin(
            name="mine",
            factory=lambda source, config: self._runner,
            can_load=lambda source: Verdict(False, "only by name"),
            needs_folder=False,
            tokenizer="simple-bpe",
        )
        return [record]


def mock_llm(runner: ModelRunner | None = None, **options: Any) -> AsyncLLM:
    """With small blocks; on the mock's own runner where none is given."""
    plugins = PluginManager()
    plugins.register(backends.mock.plugin, "mock")
    if runner is not None:
        plugins.register(_OneRunner(runner), "mine")
    backend = "mock" if runner is None else "mine"
    defaults = {"backend": backend, "block_size": 4, "num_kv_blocks": 512, "max_model_len": MAX_MODEL_LEN}
    return AsyncLLM("mock", plugins=plugins, **{**defaults, **options})


def until(holds: Callable[[], bool]) -> None:
    """Waits until something that another thread does is done."""
    end_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end_s, "it did not happen"
        time.sleep(0.001)


def is_idle(llm: AsyncLLM) -> bool:
    """Nothing runs or waits, and every block has come back."""
    stats = llm.stats()
    return (stats.num_running, stats.num_waiting, stats.num_free_kv_blocks) == (0, 0, stats.num_kv_blocks)
