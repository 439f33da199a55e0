"""Schedule: one step's work, as plain data. The scheduler fills it, the batch is packed from it, and what was sampled
goes back to the scheduler with it."""

from dataclasses import dataclass, field

from nanovllm.engine.sequence import Sequence

__all__ = ["Schedule"]


@dataclass(slots=True)
class Schedule:
    """One step's work: sequences, the number of tokens that each computes (drafts included), and how many of these,
    counted from the last, want their logits. The first `num_decodes` compute one token and their drafts.

    budget: tokens left to hand out. spare_rows: rows of logits left beyond one for each sequence.
    released: ids of the sequences that gave up their state since the step before. is_plain: all its sequences are.
    """

    budget: int
    spare_rows: int
    released: list[int]
    sequences: list[Sequence] = field(default_factory=list)
    num_new_tokens: list[int] = field(default_factory=list)
    num_logits: list[int] = field(default_factory=list)
    num_decodes: int = 0
    preempted: bool = False
    is_plain: bool = True

    def add(self, seq: Sequence, num_new_tokens: int, num_logits: int) -> None:
        self.sequences.append(seq)
        self.num_new_tokens.append(num_new_tokens)
        self.num_logits.append(num_logits)
        self.budget -= num_new_tokens
        self.is_plain &= seq.is_plain

    def part(self, indices: list[int], released: list[int]) -> "Schedule":
        """The same work for some of the sequences."""
        return Schedule(
            budget=0,
            spare_rows=0,
            released=released,
            sequences=[self.sequences[i] for i in indices],
            num_new_tokens=[self.num_new_tokens[i] for i in indices],
            num_logits=[self.num_logits[i] for i in indices],
            is_plain=self.is_plain,
        )
