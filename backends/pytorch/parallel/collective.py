"""What ranks exchange within a step: sums of partial results, token ids of rank 0, and parts of logits for it."""

from typing import Protocol

from torch import Tensor

from backends.pytorch.parallel.division import Rank

__all__ = ["Collective"]


class Collective(Protocol):
    """One rank's end. All ranks make the same calls in the same order. Raises RuntimeError where a rank has ended."""

    @property
    def rank(self) -> Rank: ...

    def join(self) -> None:
        """Waits for the other ranks, before anything else."""

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of all ranks' x, of one shape and dtype; x is given away. All ranks get the same bits."""

    def gather(self, x: Tensor, num_features: int) -> Tensor:
        """Rank 0: the parts of all ranks side by side, (rows, num_features). Elsewhere: no rows of them.

        x: (rows, this rank's share of the features).
        """

    def broadcast(self, x: Tensor) -> Tensor:
        """What rank 0 has as x, on every rank; of one shape and dtype. x is given away."""

    def abort(self) -> None:
        """A rank has ended: ends the waits of this one, on a device as well, whose results mean nothing then. Returns
        at once; any thread may call."""

    def leave(self) -> None:
        """Gives up this end, once nothing is computed any more. May be called more than once, also where the rank has
        never joined."""
