"""LLMEngine: requests in, outputs out, one step at a time.

Its collaborators are passed in (`nanovllm.engine.build` wires them). Not thread-safe: one thread adds, steps and
aborts. A step is: schedule, pack, execute, update, emit.
"""

from collections.abc import Sequence as Seq

import numpy as np
import xxhash

from nanovllm.batch import Batch, StepOutput
from nanovllm.config import EngineConfig
from nanovllm.engine.batch_builder import build_batch
from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.detokenizer import DetokenizerFactory
from nanovllm.engine.request import Request
from nanovllm.engine.scheduler import Schedule, Scheduler
from nanovllm.engine.sequence import Sequence, SequenceStatus
from nanovllm.errors import BackendError, PromptError, RequestError
from nanovllm.model_info import ModelInfo
from nanovllm.outputs import EngineStats, FinishReason, RequestOutput
from nanovllm.plugins.interfaces import ModelRunner, Tokenizer
from nanovllm.sampling_params import SamplingParams

__all__ = ["LLMEngine"]


class LLMEngine:
    """The engine. `block_manager` and `runner` agree on the number and size of blocks.

    max_model_len: longest prompt + output in tokens; a sequence of that length fits the block manager.
    """

    def __init__(
        self,
        runner: ModelRunner,
        tokenizer: Tokenizer,
        block_manager: BlockManager,
        config: EngineConfig,
        max_model_len: int,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_model_len = max_model_len
        self._runner = runner
        self._blocks = block_manager
        self._scheduler = Scheduler(block_manager, config)
        self._detokenizers = DetokenizerFactory(tokenizer)
        self._policy = config.scheduling_policy
        self._seed = config.seed
        self._requests: dict[int, Request] = {}  # by sequence id
        self._by_request_id: dict[str, Request] = {}
        self._num_requests = 0
        self._num_steps = self._num_finished = self._prefill_tokens = self._decode_tokens = 0

    @property
    def model_info(self) -> ModelInfo:
        return self._runner.model_info

    @property
    def has_unfinished_requests(self) -> bool:
        return bool(self._requests)

    def is_unfinished(self, request_id: str) -> bool:
        """Whether a request of that id waits or runs."""
        return request_id in self._by_request_id

    # -- requests -------------------------------------------------------------------------------------------------

    def prepare(
        self,
        request_id: str,
        prompt: str | Seq[int],
        sampling_params: SamplingParams,
        *,
        priority: int = 0,
        cache_salt: str = "",
        add_special_tokens: bool = True,
    ) -> Request:
        """Checks and tokenizes a request without changing the engine. Raises `RequestError`."""
        if priority and self._policy != "priority":
            raise RequestError(
                f"priority is {priority}, but scheduling_policy is {self._policy!r}, which ignores it. Load the model "
                "with scheduling_policy='priority', or give no priority."
            )
        text = prompt if isinstance(prompt, str) else None
        token_ids = self._token_ids(prompt, add_special_tokens)
        seq_id = self._num_requests
        self._num_requests += 1
        seed = sampling_params.seed
        seq = Sequence(
            seq_id,
            token_ids,
            sampling_params,
            max_tokens=min(sampling_params.max_tokens or self.max_model_len, self.max_model_len - len(token_ids)),
            seed=xxhash.xxh3_64_intdigest(f"{self._seed}:{seq_id}".encode()) if seed is None else seed,
            eos_token_ids=self.model_info.eos_token_ids,
            priority=priority,
            cache_salt=cache_salt,
        )
        return Request(request_id, text, seq, self._detokenizers.make(sampling_params, token_ids))

    def add(self, request: Request) -> None:
        """Queues a prepared request."""
        if request.request_id in self._by_request_id:
            raise RequestError(f"request id {request.request_id!r} is in use; every running request needs its own.")
        self._scheduler.add(request.seq)
        self._requests[request.seq.seq_id] = request
        self._by_request_id[request.request_id] = request

    def abort(self, request_id: str) -> None:
        """Ends a request and frees its blocks at once. An id that is unknown or has finished is no error."""
        request = self._by_request_id.get(request_id)
        if request is not None:
            self._scheduler.finish(request.seq, FinishReason.ABORT)
            self._forget(request)

    def _forget(self, request: Request) -> None:
        del self._requests[request.seq.seq_id]
        del self._by_request_id[request.request_id]
        self._num_finished += 1

    def _token_ids(self, prompt: str | Seq[int], add_special_tokens: bool) -> Seq[int]:
        if isinstance(prompt, str):
            token_ids: Seq[int] = self.tokenizer.encode(prompt, add_special_tokens=add_special_tokens)
        else:
            token_ids = prompt
        _check_token_ids(token_ids, self.model_info.vocab_size)
        if not len(token_ids):
            raise PromptError(f"the prompt {prompt!r} is empty: it has no tokens. Give at least one.")
        if len(token_ids) >= self.max_model_len:
            raise PromptError(
                f"the prompt has {len(token_ids)} tokens; with max_model_len {self.max_model_len} it may have at most "
                f"{self.max_model_len - 1}, which leaves one to generate. Shorten it or raise max_model_len."
            )
        return token_ids

    # -- steps ----------------------------------------------------------------------------------------------------

    def step(self) -> list[RequestOutput]:
        """Computes one step; returns the outputs of requests that have something to tell.

        Raises `BackendError` if the runner failed; the requests of that step are then ended, the others go on.
        """
        schedule = self._scheduler.schedule()
        if schedule is None:
            return []
        output = self._execute(build_batch(schedule, self._blocks.block_size), schedule)
        self._scheduler.update(schedule, output)
        self._count(schedule)
        return self._emit(schedule)

    def _execute(self, batch: Batch, schedule: Schedule) -> StepOutput:
        try:
            output = self._runner.submit(batch).result()
            _check_output(output, batch)
            return output
        except Exception as error:
            self._scheduler.fail(schedule)
            for seq in schedule.sequences:
                self._forget(self._requests[seq.seq_id])
            if isinstance(error, BackendError):
                raise
            raise BackendError(
                f"the model runner failed in a step of {batch.num_seqs} sequences and {batch.num_tokens} tokens: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _emit(self, schedule: Schedule) -> list[RequestOutput]:
        outputs = []
        for seq in schedule.sequences:
            request = self._requests.get(seq.seq_id)
            if request is None or not request.has_new_tokens:
                continue
            stop = request.detokenize()
            if stop is not None:
                self._stop(seq, stop)
            if seq.status is SequenceStatus.FINISHED:
                self._forget(request)
            output = request.output()
            if output is not None:
                outputs.append(output)
        return outputs

    def _stop(self, seq: Sequence, stop: str) -> None:
        """A stop string ended the text, whether or not the sequence had ended by itself."""
        if seq.status is SequenceStatus.FINISHED:
            seq.finish_reason, seq.stop_reason = FinishReason.STOP, stop
        else:
            self._scheduler.finish(seq, FinishReason.STOP, stop)

    def _count(self, schedule: Schedule) -> None:
        self._num_steps += 1
        self._decode_tokens += schedule.num_decodes
        self._prefill_tokens += sum(schedule.num_new_tokens) - schedule.num_decodes

    def stats(self) -> EngineStats:
        """A snapshot, cheap enough for every step."""
        return EngineStats(
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting,
            num_kv_blocks=self._blocks.num_blocks,
            num_free_kv_blocks=self._blocks.num_free_blocks,
            num_steps=self._num_steps,
            prefill_tokens=self._prefill_tokens,
            decode_tokens=self._decode_tokens,
            prefix_cache_queries=self._scheduler.prefix_cache_queries,
            prefix_cache_hits=self._scheduler.prefix_cache_hits,
            num_preemptions=self._scheduler.num_preemptions,
            num_finished_requests=self._num_finished,
        )

    def check_invariants(self) -> None:
        """Raises AssertionError unless the books of scheduler and block manager agree. For tests."""
        self._scheduler.check_invariants()
        assert len(self._requests) == self._scheduler.num_running + self._scheduler.num_waiting, "a request is lost"

    def close(self) -> None:
        """Ends every request and closes the runner."""
        for request_id in list(self._by_request_id):
            self.abort(request_id)
        self._runner.close()


def _check_output(output: StepOutput, batch: Batch) -> None:
    """A runner owes at least one token to each sequence whose logits were wanted, and none to the others."""
    counts = [len(token_ids) for token_ids in output.token_ids]
    wanted = (batch.logits_start[1:] > batch.logits_start[:-1]).tolist()
    if [count > 0 for count in counts] != wanted:
        raise BackendError(
            f"the model runner returned {counts} token ids for the sequences of a step; it owes them where a sequence "
            f"wants logits, here {wanted}. Have the backend fixed."
        )


def _check_token_ids(token_ids: Seq[int], vocab_size: int) -> None:
    for token_id in token_ids:
        is_integer = isinstance(token_id, int | np.integer) and not isinstance(token_id, bool)
        if not is_integer or not 0 <= token_id < vocab_size:
            raise PromptError(
                f"the prompt holds the token id {token_id!r}; the model's ids are integers from 0 to {vocab_size - 1}. "
                "Use the tokenizer that belongs to the model."
            )
