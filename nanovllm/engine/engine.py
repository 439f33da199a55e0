"""LLMEngine: requests in, outputs out, one step at a time.

Its collaborators are passed in (`nanovllm.engine.build` wires them). Not thread-safe, but for `prepare`: one thread
adds, steps and aborts. A step is: propose, schedule, execute, update, emit. Where the runner overlaps, the next step is
scheduled and submitted before this one is waited for:

    engine   schedule N+1 | wait for N | update, emit N | schedule N+2 | wait for N+1 | ...
    runner   -------- N --------->|------------ N+1 ------------------------>|------ N+2 ...
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from itertools import pairwise

from nanovllm.batch import RowLogprobs
from nanovllm.config import EngineConfig
from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.execution import Execution, StepExecutor, SubmittedStep
from nanovllm.engine.intake import Intake
from nanovllm.engine.lookahead import can_look_ahead, looking_ahead
from nanovllm.engine.request import Completion, Request, read_logprobs
from nanovllm.engine.schedule import Schedule
from nanovllm.engine.scheduler import Scheduler
from nanovllm.engine.sequence import Sequence, SequenceStatus
from nanovllm.engine.speculation import NgramProposer
from nanovllm.errors import NanoVLLMError, RequestError
from nanovllm.model_info import ModelInfo
from nanovllm.outputs import STEP_TOKEN_BOUNDS, EngineStats, FinishReason, RequestOutput, TokenLogprobs
from nanovllm.plugins.interfaces import ModelRunner, Tokenizer
from nanovllm.sampling_params import RequestOutputKind, SamplingParams

__all__ = ["LLMEngine"]


class LLMEngine:
    """The engine. `block_manager` and `runner` agree on the number and size of blocks.

    max_model_len: longest prompt + output in tokens; a sequence of that length fits the block manager.
    isolate_failures: whether a failed step may be executed again in parts. overlap: whether the next step is submitted
    before the tokens of the last one are known, wherever they are not needed. clock: seconds.
    """

    def __init__(
        self,
        runner: ModelRunner,
        tokenizer: Tokenizer,
        block_manager: BlockManager,
        config: EngineConfig,
        max_model_len: int,
        *,
        isolate_failures: bool = True,
        overlap: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_model_len = max_model_len
        self._runner = runner
        self._blocks = block_manager
        self._scheduler = Scheduler(block_manager, config)
        self._executor = StepExecutor(runner, block_manager.block_size, isolate=isolate_failures)
        self._intake = Intake(runner, tokenizer, config, max_model_len)
        self._proposer = None if config.speculative_config is None else NgramProposer(config.speculative_config)
        self._overlaps = overlap
        self._ahead: SubmittedStep | None = None  # the next step, where it is under way already
        self._clock = clock
        self._completions: dict[int, Completion] = {}  # by sequence id, until its request is forgotten
        self._requests: dict[str, Request] = {}
        self._num_steps = self._num_finished = self._num_failed = 0
        self._prefill_tokens = self._decode_tokens = self._generation_tokens = 0
        self._last_step = (0, 0)  # sequences, tokens
        self._steps_by_tokens = [0] * (len(STEP_TOKEN_BOUNDS) + 1)

    @property
    def model_info(self) -> ModelInfo:
        return self._runner.model_info

    @property
    def has_unfinished_requests(self) -> bool:
        return bool(self._requests)

    def is_unfinished(self, request_id: str) -> bool:
        """Whether a request of that id waits or runs."""
        return request_id in self._requests

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
        """Checks and tokenizes a request without changing the engine; any thread may. Raises `RequestError`."""
        return self._intake.prepare(
            request_id,
            prompt,
            sampling_params,
            priority=priority,
            cache_salt=cache_salt,
            add_special_tokens=add_special_tokens,
            arrival_s=self._clock(),
        )

    def add(self, request: Request) -> None:
        """Queues a prepared request."""
        if request.request_id in self._requests:
            raise RequestError(f"request id {request.request_id!r} is in use; every running request needs its own.")
        self._requests[request.request_id] = request
        for completion in request.completions:
            self._completions[completion.seq.seq_id] = completion
            self._scheduler.add(completion.seq)

    def abort(self, request_id: str) -> None:
        """Ends a request and frees its blocks at once. An id that is unknown or has finished is no error."""
        request = self._requests.get(request_id)
        if request is not None:
            self._end_all(request, FinishReason.ABORT)
            self._forget(request)

    def _end_all(self, request: Request, reason: FinishReason) -> None:
        for completion in request.completions:
            if completion.seq.status is not SequenceStatus.FINISHED:
                self._scheduler.finish(completion.seq, reason)

    def _forget(self, request: Request) -> None:
        for completion in request.completions:
            del self._completions[completion.seq.seq_id]
        del self._requests[request.request_id]
        self._num_finished += 1

    # -- steps ----------------------------------------------------------------------------------------------------

    def step(self) -> list[RequestOutput]:
        """Computes one step; returns the outputs of requests that have something to tell.

        Where the runner fails, the requests that it fails on end with an output whose `error` says why; the others go
        on. Raises `BackendLostError` where the runner can run no step any more; of what it does, nothing else.
        """
        step, self._ahead = self._ahead or self._start(), None
        if step is None:
            return []
        schedule = step.schedule
        execution = self._executor.finish(step, self._start_ahead(step) if self._overlaps else None)
        self._ahead = execution.ahead
        self._scheduler.release_again(execution.unreported)
        for index, error in execution.errors.items():
            self._fail(schedule.sequences[index], error)
        for seq, refusal in self._scheduler.update(schedule, execution.output).items():
            self._fail(seq, refusal)
        self._take_logprobs(schedule, execution)
        return self._emit(schedule)

    def _start(self) -> SubmittedStep | None:
        if self._proposer is not None:
            self._proposer.propose(self._scheduler.running)
        schedule = self._scheduler.schedule()
        return None if schedule is None else self._submit(schedule)

    def _start_ahead(self, step: SubmittedStep) -> SubmittedStep | None:
        """Starts the step after `step`, whose tokens are not known; None where it has to wait for them."""
        if step.is_refused or not can_look_ahead(step.schedule):
            return None
        with looking_ahead(step.schedule):
            schedule = self._scheduler.schedule_ahead()
            return None if schedule is None else self._submit(schedule)

    def _submit(self, schedule: Schedule) -> SubmittedStep:
        self._note_start(schedule)
        return self._executor.submit(schedule)

    def _note_start(self, schedule: Schedule) -> None:
        self._num_steps += 1
        num_tokens = sum(schedule.num_new_tokens)
        num_decode_tokens = sum(schedule.num_new_tokens[: schedule.num_decodes])
        self._decode_tokens += num_decode_tokens
        self._prefill_tokens += num_tokens - num_decode_tokens
        self._last_step = len(schedule.sequences), num_tokens
        self._steps_by_tokens[bisect_left(STEP_TOKEN_BOUNDS, num_tokens)] += 1
        for seq in schedule.sequences[schedule.num_decodes :]:
            request = self._completions[seq.seq_id].request
            if request.scheduled_s is None:
                request.scheduled_s = self._clock()

    def _fail(self, seq: Sequence, error: NanoVLLMError) -> None:
        """One sequence of a step cannot go on: its whole request ends."""
        request = self._completions[seq.seq_id].request
        if request.error is None:
            request.error = error
            self._num_failed += 1
        self._end_all(request, FinishReason.ERROR)

    def _take_logprobs(self, schedule: Schedule, execution: Execution) -> None:
        """Hands the rows' log-probabilities to their requests: those of prompts come before those of new tokens."""
        rows, targets = execution.output.logprobs, execution.batch.sampling.targets
        if rows is None:
            return
        for index, (start, end) in enumerate(pairwise(execution.batch.logits_start.tolist())):
            completion = self._completions.get(schedule.sequences[index].seq_id)
            if completion is None or index in execution.errors:
                continue
            num_targets = 0 if targets is None else int((targets[start:end] >= 0).sum())
            if num_targets:
                completion.request.add_prompt_logprobs(list(self._read(rows[start : start + num_targets])))
            if completion.seq.num_logprobs >= 0:
                sampled = rows[start + num_targets : end]
                completion.add_logprobs(list(self._read(sampled[: completion.num_new_tokens])))

    def _read(self, rows: Seq[RowLogprobs | None]) -> Iterator[TokenLogprobs]:
        return (read_logprobs(row, self._token_text) for row in rows if row is not None)

    def _token_text(self, token_id: int) -> str:
        return self.tokenizer.decode([token_id], skip_special_tokens=False)

    def _emit(self, schedule: Schedule) -> list[RequestOutput]:
        now = self._clock()
        changed: list[Request] = []
        for seq in schedule.sequences:
            try:
                completion = self._completions[seq.seq_id]
            except KeyError:  # its request ended while the step was under way
                continue
            request = completion.request
            num_new_tokens = completion.num_new_tokens
            if num_new_tokens:
                self._generation_tokens += num_new_tokens
                request.last_token_s = now
                if request.first_token_s is None:
                    request.first_token_s = now
                stop = completion.detokenize()
                if stop is not None:
                    self._stop(seq, stop)
                if seq.finish_reason is None and request.output_kind is RequestOutputKind.FINAL_ONLY:
                    continue
            elif request.error is None:
                continue
            if not request.changed:
                changed.append(request)
            request.changed.append(completion)
        return [output for request in changed if (output := self._output(request)) is not None]

    def _output(self, request: Request) -> RequestOutput | None:
        if request.is_finished:
            self._forget(request)
        return request.output()

    def _stop(self, seq: Sequence, stop: str) -> None:
        """A stop string ended the text, whether or not the sequence had ended by itself."""
        if seq.status is SequenceStatus.FINISHED:
            seq.finish_reason, seq.stop_reason = FinishReason.STOP, stop
        else:
            self._scheduler.finish(seq, FinishReason.STOP, stop)

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
            generation_tokens=self._generation_tokens,
            num_draft_tokens=self._scheduler.num_draft_tokens,
            num_accepted_tokens=self._scheduler.num_accepted_tokens,
            prefix_cache_queries=self._scheduler.prefix_cache_queries,
            prefix_cache_hits=self._scheduler.prefix_cache_hits,
            num_preemptions=self._scheduler.num_preemptions,
            num_finished_requests=self._num_finished,
            num_failed_requests=self._num_failed,
            last_step_num_seqs=self._last_step[0],
            last_step_num_tokens=self._last_step[1],
            kv_block_size=self._blocks.block_size,
            num_steps_by_tokens=tuple(self._steps_by_tokens),
        )

    def check_invariants(self) -> None:
        """Raises AssertionError unless the books of scheduler and block manager agree. For tests."""
        self._scheduler.check_invariants()
        num_unfinished = sum(
            completion.seq.status is not SequenceStatus.FINISHED for completion in self._completions.values()
        )
        assert num_unfinished == self._scheduler.num_running + self._scheduler.num_waiting, "a sequence is lost"
        assert not any(request.is_finished for request in self._requests.values()), "a finished request is kept"

    def close(self) -> None:
        """Ends every request and closes the runner."""
        for request_id in list(self._requests):
            self.abort(request_id)
        if self._ahead is not None:
            self._executor.discard(self._ahead)
            self._ahead = None
        self._intake.close()
        self._runner.close()
