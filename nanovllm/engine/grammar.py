"""Structured output: the form that a request wants in, the tokens that are allowed next out.

    GrammarCompiler  --compile-->  Grammar  --start-->  GrammarState
    one per engine                 immutable, cached    one per sequence: masks, accept, masks, accept, ...

llguidance does the matching (the `structured` extra, imported when the first grammar is compiled). Masks are computed
in background threads while the model computes: llguidance releases the interpreter's lock. Knows nothing about
scheduling, sampling or text.
"""

import threading
from collections.abc import Sequence as Seq
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np

from nanovllm.batch import TokenMask, UInt32Array
from nanovllm.engine.grammar_text import grammar_text
from nanovllm.engine.grammar_vocabulary import GrammarVocabulary
from nanovllm.errors import SamplingParamsError
from nanovllm.plugins import Tokenizer
from nanovllm.structured_outputs import StructuredOutputsParams

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

__all__ = ["Grammar", "GrammarCompiler", "GrammarState"]


_NUM_THREADS = 2
_MAX_CACHED_GRAMMARS = 64
_MAX_GRAMMAR_CHARS = 2**17
_COMPILER_STACK_BYTES = 2**28
"""llguidance follows rules that name rules (and schemas that refer to schemas) by recursion, up to 8 KiB a step, and
overflowing a stack ends the process. The longest text has steps for 100 MiB; only touched pages take memory."""


class GrammarCompiler:
    """Compiles grammars for one model. May be called from several threads.

    vocab_size: the width of the logits; may differ from the tokenizer's. eos_token_ids: the tokens that end a
    sequence; a grammar that may end allows all of them.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Seq[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = tuple(eos_token_ids)
        self._executor = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="grammar")
        self._cached = lru_cache(_MAX_CACHED_GRAMMARS)(self._compile)

    def compile(self, params: StructuredOutputsParams) -> "Grammar":
        """The grammar of `params`: milliseconds, or nothing if it is cached. The first call also takes in the
        vocabulary, about half a second for 150,000 tokens.

        Raises `SamplingParamsError`: llguidance is not installed, or the grammar is wrong, allows nothing, is too
        complex or uses what llguidance does not support. Other grammars are not concerned.
        """
        try:
            import llguidance  # noqa: F401  (only to say how to get it)
        except ImportError as error:
            raise SamplingParamsError(
                "structured_outputs needs llguidance, which is not installed: pip install 'nanovllm[structured]'."
            ) from error
        text = grammar_text(params)
        if len(text) > _MAX_GRAMMAR_CHARS:
            raise SamplingParamsError(
                f"this structured_outputs is {len(text)} characters long as a grammar; at most {_MAX_GRAMMAR_CHARS} "
                "are allowed. Split it over several requests."
            )
        return self._cached(text)

    def close(self) -> None:
        """Ends the threads; nothing is compiled and no mask computed afterwards."""
        self._executor.shutdown(wait=False)
        if "_deep_thread" in self.__dict__:
            self._deep_thread.shutdown(wait=False)

    @cached_property
    def _llguidance_tokenizer(self) -> "LLTokenizer":
        from llguidance import LLTokenizer, TokenizerWrapper

        vocabulary = GrammarVocabulary(self._tokenizer, self._vocab_size, self._eos_token_ids)
        return LLTokenizer(TokenizerWrapper(vocabulary), eos_token=vocabulary.eos_token_ids)

    @cached_property
    def _deep_thread(self) -> ThreadPoolExecutor:
        """One thread with a large stack, in which everything is compiled."""
        usual = threading.stack_size(_COMPILER_STACK_BYTES)
        try:
            executor = ThreadPoolExecutor(1, thread_name_prefix="grammar-compiler")
            executor.submit(int).result()  # starts it
        finally:
            threading.stack_size(usual)
        return executor

    def _compile(self, text: str) -> "Grammar":
        return self._deep_thread.submit(self._compile_here, text).result()

    def _compile_here(self, text: str) -> "Grammar":
        from llguidance import LLMatcher, LLParserLimits

        tokenizer = self._llguidance_tokenizer
        matcher = LLMatcher(tokenizer, text, log_level=0, limits=LLParserLimits(verbose_errors=False))
        ends = np.zeros(-(-self._vocab_size // 32), np.uint32)
        for token_id in tokenizer.eos_tokens:
            ends[token_id // 32] |= np.uint32(1 << token_id % 32)
        if not matcher.is_error():
            matcher.compute_bitmask()  # what allows no first token shows here
        if matcher.is_error():
            raise SamplingParamsError(
                f"this structured_outputs cannot be enforced: {_reason(matcher)}. Change the part that it names."
            )
        return Grammar(matcher, ends, frozenset(tokenizer.eos_tokens), self._executor)


@dataclass(frozen=True, slots=True)
class Grammar:
    """One compiled grammar, made by `GrammarCompiler.compile`; any number of sequences may follow it at once."""

    _matcher: "LLMatcher"  # never fed, only copied: an llguidance matcher that has failed cannot be revived
    _ends: UInt32Array
    _eos_token_ids: frozenset[int]
    _executor: ThreadPoolExecutor

    def start(self) -> "GrammarState":
        """A sequence that has no token yet."""
        return GrammarState(self._matcher.deep_copy(), self._ends, self._eos_token_ids, self._executor)


@dataclass(frozen=True, slots=True)
class _PendingMask:
    computed: Future[None]
    words: UInt32Array  # (ceil(vocab_size / 32),)

    def result(self) -> UInt32Array:
        self.computed.result()
        return self.words


class GrammarState:
    """How far one sequence is in its grammar. Used by one thread at a time.

    is_finished: nothing but the end of the sequence may follow.
    """

    def __init__(
        self, matcher: "LLMatcher", ends: UInt32Array, eos_token_ids: frozenset[int], executor: ThreadPoolExecutor
    ) -> None:
        self.is_finished = False
        self._matcher = matcher
        self._ends = ends
        self._eos_token_ids = eos_token_ids
        self._executor = executor
        self._ended = False  # has its end-of-sequence token
        self._masks = np.empty((1, len(ends)), np.uint32)
        self._computed: Future[None] | None = None

    def masks(self, drafts: Seq[int] = ()) -> list[TokenMask]:
        """Which tokens may come next, and which after each of `drafts`: len(drafts) + 1 masks.

        Returns at once; they are computed in the background and valid until the next call of this state's `masks` or
        `accept`. Where the grammar allows the end, all end-of-sequence ids are allowed. A draft that the grammar
        refuses makes the masks after it meaningless.
        """
        self._wait()
        count = len(drafts) + 1
        if len(self._masks) < count:
            self._masks = np.empty((count, len(self._ends)), np.uint32)
        masks = self._masks[:count]
        self._computed = self._executor.submit(self._compute, masks, tuple(drafts))
        return [_PendingMask(self._computed, words) for words in masks]

    def accept(self, token_id: int) -> None:
        """The sequence has this token now.

        Raises `SamplingParamsError` where the grammar does not allow it: the sampler did not honour the mask, or
        llguidance gave the grammar up (too complex, or no token of this model goes on) and could allow only the end.
        """
        self._wait()
        is_end = token_id in self._eos_token_ids
        if is_end and (self._ended or self._matcher.is_accepting()):
            self._ended = self.is_finished = True
        elif is_end or self._ended or not self._matcher.consume_token(token_id):
            raise SamplingParamsError(
                f"the output left its grammar at token {token_id}: {_reason(self._matcher) or 'not allowed here'}. "
                "Simplify the grammar, or bound its strings and arrays."
            )
        else:
            self.is_finished = self._matcher.is_stopped()

    def _wait(self) -> None:
        """A matcher is not to be touched while a mask of it is being computed."""
        if self._computed is not None:
            self._computed.result()

    def _compute(self, masks: UInt32Array, drafts: tuple[int, ...]) -> None:
        """Fills masks, uint32 (len(drafts) + 1, ceil(vocab_size / 32))."""
        masks[:] = self._ends
        if self._ended:
            return
        matcher, address = self._matcher, masks.ctypes.data
        matcher.unsafe_compute_mask_ptr(address, masks.strides[0])
        for row, draft in enumerate(drafts, start=1):
            if matcher is self._matcher:
                matcher = matcher.deep_copy()  # what goes wrong after a draft must not reach the sequence
            if not matcher.try_consume_tokens([draft]):
                return
            matcher.unsafe_compute_mask_ptr(address + row * masks.strides[0], masks.strides[0])


def _reason(matcher: "LLMatcher") -> str:
    """Why llguidance gave up, on one line; empty where it did not."""
    lines = matcher.get_error().removesuffix("<non-verbose/>").split("\n")
    reason = " ".join(line.strip() for line in lines if line.strip())
    return "it allows no output, or none that this model's tokens can spell" if reason == "NoExtensionBias" else reason
