"""Looking ahead: the sequences of a step that is being computed, as they will stand when it has been.

In: a schedule whose step was submitted and whose tokens nobody knows yet. Out: for as long as a `with` lasts, sequences
that the step after it can be scheduled and packed from; then they are as before, so that `Scheduler.update` takes what
the step sampled as it always does. What a sequence will have sampled stands there as `LAST_SAMPLED`, always as the last
of its tokens. Knows nothing about runners.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from nanovllm.batch import LAST_SAMPLED
from nanovllm.engine.schedule import Schedule

__all__ = ["can_look_ahead", "looking_ahead"]


def can_look_ahead(step: Schedule) -> bool:
    """Whether the step after `step` can be prepared without the tokens that `step` samples.

    It cannot where one of them decides what happens to the logits of the next: penalties, grammars, processors.
    """
    return step.is_plain or not any(
        num_logits and seq.edits is not None and seq.edits.follow_output
        for seq, num_logits in zip(step.sequences, step.num_logits, strict=True)
    )


@contextmanager
def looking_ahead(step: Schedule) -> Iterator[None]:
    """Inside, `step` counts as computed. A sequence whose last token it samples has nothing left to compute."""
    before = [(seq, seq.num_computed_tokens, len(seq.token_ids)) for seq in step.sequences]
    try:
        for (seq, num_computed, num_tokens), num_new in zip(before, step.num_new_tokens, strict=True):
            seq.num_computed_tokens = num_computed + num_new
            if seq.num_computed_tokens == num_tokens and seq.num_output_tokens + 1 < seq.max_tokens:
                seq.token_ids.append(LAST_SAMPLED)
        yield
    finally:
        for seq, num_computed, num_tokens in before:
            seq.num_computed_tokens = num_computed
            del seq.token_ids[num_tokens:]
