"""Intake: turns what a user submits into a `Request` that the engine can take, or refuses it.

In: prompt and parameters. Out: a request with a sequence for each continuation. Changes nothing in the engine, so a
request that is refused has touched no other; safe to call from several threads.
"""

import itertools
from collections.abc import Sequence as Seq

import numpy as np
import xxhash

from nanovllm.config import EngineConfig
from nanovllm.engine.detokenizer import DetokenizerFactory
from nanovllm.engine.grammar import Grammar, GrammarCompiler
from nanovllm.engine.logits_edits import SequenceEdits, bad_word_token_ids, needs_edits
from nanovllm.engine.request import Request
from nanovllm.engine.sequence import Sequence
from nanovllm.errors import PromptError, RequestError, SamplingParamsError
from nanovllm.plugins.interfaces import ModelRunner, Tokenizer
from nanovllm.sampling_params import SamplingParams

__all__ = ["Intake"]


class Intake:
    """max_model_len: longest prompt + output, in tokens."""

    def __init__(self, runner: ModelRunner, tokenizer: Tokenizer, config: EngineConfig, max_model_len: int) -> None:
        info = runner.model_info
        self._honours = runner.honours
        self._vocab_size = info.vocab_size
        self._eos_token_ids = info.eos_token_ids
        self._max_model_len = max_model_len
        self._tokenizer = tokenizer
        self._detokenizers = DetokenizerFactory(tokenizer)
        self._grammars = GrammarCompiler(tokenizer, info.vocab_size, info.eos_token_ids)
        self._config = config
        self._seq_ids = itertools.count()

    def prepare(
        self,
        request_id: str,
        prompt: str | Seq[int],
        params: SamplingParams,
        *,
        priority: int,
        cache_salt: str,
        add_special_tokens: bool,
        arrival_s: float,
    ) -> Request:
        """The request, with sequences that nothing has been scheduled for. Raises `RequestError`."""
        self._check_policy(priority)
        self._check_honoured(params)
        token_ids = self._token_ids(prompt, params, add_special_tokens)
        self._check_prompt_rows(len(token_ids), params)
        self._check_ids(params)
        grammar = None if params.structured_outputs is None else self._grammars.compile(params.structured_outputs)
        bad_words = bad_word_token_ids(params.bad_words, self._tokenizer) if params.bad_words else []
        text = prompt if isinstance(prompt, str) else None
        request = Request(request_id, text, list(token_ids), params.output_kind, arrival_s)
        for index in range(params.n):
            seq = self._sequence(index, token_ids, params, priority, cache_salt, bad_words, grammar)
            request.add_completion(seq, self._detokenizers.make(params, token_ids) if params.detokenize else None)
        return request

    def close(self) -> None:
        """Nothing is prepared afterwards."""
        self._grammars.close()

    def _sequence(
        self,
        index: int,
        token_ids: Seq[int],
        params: SamplingParams,
        priority: int,
        cache_salt: str,
        bad_words: Seq[Seq[int]],
        grammar: Grammar | None,
    ) -> Sequence:
        seq_id = next(self._seq_ids)
        seed = params.seed
        seq = Sequence(
            seq_id,
            token_ids,
            params,
            max_tokens=min(params.max_tokens or self._max_model_len, self._max_model_len - len(token_ids)),
            seed=xxhash.xxh3_64_intdigest(f"{self._config.seed}:{seq_id}".encode()) if seed is None else seed + index,
            eos_token_ids=self._eos_token_ids,
            priority=priority,
            cache_salt=cache_salt,
            num_logprobs=self._num_logprobs(params.logprobs),
            num_prompt_logprobs=self._num_logprobs(params.prompt_logprobs) if index == 0 else -1,
        )
        if needs_edits(params):
            seq.edits = SequenceEdits(
                params,
                token_ids,
                stop_token_ids=seq.stop_token_ids | frozenset(self._eos_token_ids),
                bad_words=bad_words,
                vocab_size=self._vocab_size,
                grammar=None if grammar is None else grammar.start(),
            )
        return seq

    def _num_logprobs(self, wanted: int | None) -> int:
        """As `Sequence` has it: -1 for none at all, where SamplingParams says -1 for the whole vocabulary."""
        if wanted is None:
            return -1
        return self._vocab_size if wanted == -1 else min(wanted, self._vocab_size)

    def _token_ids(self, prompt: str | Seq[int], params: SamplingParams, add_special_tokens: bool) -> Seq[int]:
        if isinstance(prompt, str):
            token_ids: Seq[int] = self._tokenizer.encode(prompt, add_special_tokens=add_special_tokens)
        else:
            token_ids = prompt
        _check_token_ids(token_ids, self._vocab_size)
        if not len(token_ids):
            raise PromptError(f"the prompt {prompt!r} is empty: it has no tokens. Give at least one.")
        if len(token_ids) >= self._max_model_len:
            raise PromptError(
                f"the prompt has {len(token_ids)} tokens; with max_model_len {self._max_model_len} it may have at most "
                f"{self._max_model_len - 1}, which leaves one to generate. Shorten it or raise max_model_len."
            )
        return token_ids

    def _check_policy(self, priority: int) -> None:
        if priority and self._config.scheduling_policy != "priority":
            raise RequestError(
                f"priority is {priority}, but scheduling_policy is {self._config.scheduling_policy!r}, which ignores "
                "it. Load the model with scheduling_policy='priority', or give no priority."
            )

    def _check_honoured(self, params: SamplingParams) -> None:
        wanted = {
            "edits": needs_edits(params),
            "logprobs": params.logprobs is not None,
            "prompt_logprobs": params.prompt_logprobs is not None,
        }
        for feature, is_wanted in wanted.items():
            if is_wanted and feature not in self._honours:
                raise RequestError(
                    f"this backend samples by itself and does not honour {_FEATURES[feature]}. Leave that out, or "
                    "choose another backend."
                )

    def _check_prompt_rows(self, num_tokens: int, params: SamplingParams) -> None:
        config = self._config
        spare_rows = config.logits_limit - config.max_num_seqs
        if params.prompt_logprobs is not None and not config.enable_chunked_prefill and num_tokens - 1 > spare_rows:
            raise RequestError(
                f"prompt_logprobs of {num_tokens} tokens needs as many rows of logits in one step; without chunked "
                f"prefill there are {spare_rows} (max_num_logits - max_num_seqs). Raise max_num_logits, or enable "
                "chunked prefill."
            )

    def _check_ids(self, params: SamplingParams) -> None:
        for name in ("logit_bias", "allowed_token_ids", "stop_token_ids"):
            for token_id in getattr(params, name) or ():
                if not 0 <= token_id < self._vocab_size:
                    raise SamplingParamsError(
                        f"{name} holds the token id {token_id}; the model's ids are 0 to {self._vocab_size - 1}."
                    )


_FEATURES = {
    "edits": "penalties, logit_bias, bad_words, allowed_token_ids, min_tokens, logits_processors, structured_outputs",
    "logprobs": "logprobs",
    "prompt_logprobs": "prompt_logprobs",
}


def _check_token_ids(token_ids: Seq[int], vocab_size: int) -> None:
    for token_id in token_ids:
        is_integer = isinstance(token_id, int | np.integer) and not isinstance(token_id, bool)
        if not is_integer or not 0 <= token_id < vocab_size:
            raise PromptError(
                f"the prompt holds the token id {token_id!r}; the model's ids are integers from 0 to {vocab_size - 1}. "
                "Use the tokenizer that belongs to the model."
            )
