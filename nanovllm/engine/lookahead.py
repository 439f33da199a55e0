"""Looking ahead: the sequences of a step that is being computed, as they will stand when it has been.

In: a schedule whose step was submitted and whose tokens nobody knows yet. Out: for as long as a `with` lasts, sequences
that the step after it can be scheduled and packed from; then they are as before, so that `Scheduler.update` takes what
the step sampled as it always does. What a sequence will have sampled stands there as `LAST_SAMPLED`, always as the last
of its tokens. Knows nothing about runners.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from nanovllm.batch import LAST_SAMPLED
from nanovllm.engine.scheduler import Schedule
from nanovllm.engine.sequence import Sequence, SequenceStatus

__all__ = ["can_look_ahead", "looking_ahead"]


def can_look_ahead(step: Schedule) -> bool:
    """Whether the step after `step` can be prepared without the tokens that `step` samples.

    It cannot where one of them decides what happens to the logits of the next: penalties, masks, bad words, processors.
    """
    return step.is_plain or not any(
        seq.edits is not None and num_logits for seq, num_logits in zip(step.sequences, step.num_logits, strict=True)
    )


@contextmanager
def looking_ahead(step: Schedule) -> Iterator[None]:
    """Inside, `step` counts as computed. A sequence whose last token it samples has nothing left to compute; one that
    has ended since it was scheduled is left alone."""
    before = []
    for seq, num_new in zip(step.sequences, step.num_new_tokens, strict=True):
        if seq.status is SequenceStatus.RUNNING:
            before.append((seq, seq.num_computed_tokens, seq.num_tokens, seq.prompt_rows_done))
            _advance(seq, num_new)
    try:
        yield
    finally:
        for seq, num_computed_tokens, num_tokens, prompt_rows_done in before:
            seq.num_computed_tokens = num_computed_tokens
            seq.prompt_rows_done = prompt_rows_done
            del seq.token_ids[num_tokens:]


def _advance(seq: Sequence, num_new_tokens: int) -> None:
    seq.num_computed_tokens += num_new_tokens
    if seq.wants_prompt_rows:
        seq.prompt_rows_done = min(seq.num_computed_tokens, seq.num_prompt_tokens - 1)
    if seq.num_computed_tokens == seq.num_tokens and seq.num_output_tokens + 1 < seq.max_tokens:
        seq.token_ids.append(LAST_SAMPLED)
