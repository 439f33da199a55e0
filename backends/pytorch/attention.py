"""The border between a model and what a device does for attention: the KV cache, and attention over it.

One implementation a device. The model's program knows this interface only; rotation belongs to it because device
kernels fuse it with the write into the cache.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

from torch import Tensor

from nanovllm.architectures import AttentionSpec

__all__ = ["AttendFunction", "HeadGains", "PagedAttention"]

StepT = TypeVar("StepT", contravariant=True)

AttendFunction = Callable[[Any, AttentionSpec, Any, Tensor, Tensor, Tensor], Tensor]
"""As `PagedAttention.attend`."""


class HeadGains(NamedTuple):
    """RMS norms of each head of queries and keys: float32 (head_dim,), weights and their offset; and the epsilon."""

    query: Tensor
    key: Tensor
    eps: float


class PagedAttention(Protocol[StepT]):
    """Owns the pools of all layers. StepT: what it plans a step from, a `Batch` or what of it lies on the device."""

    @property
    def is_allocated(self) -> bool: ...

    def allocate(self, num_blocks: int, block_size: int) -> None:
        """Fresh pools in place of earlier ones. Raises RuntimeError or MemoryError where memory does not suffice."""

    def free(self) -> None:
        """Gives the pools back."""

    def plan(self, step: StepT, /) -> Any:
        """What one step needs beside the model's own values, made once and used by all layers."""

    def attend(
        self, plan: Any, spec: AttentionSpec, rotation: Any, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        """Writes key and value at the slots of the step's tokens and attends over what each sequence has by then.

        query: (num_tokens, num_heads * head_dim), key and value: (num_tokens, num_kv_heads * head_dim), not rotated.
        The query may be written to. rotation: that of the spec's rope in the form that the device's runner makes; None
        where the spec has no rope. Returns (num_tokens, num_heads * head_dim).
        """

    def attend_normed(self, gains: HeadGains) -> AttendFunction | None:
        """`attend` of heads that it norms first; None where nothing is gained by not norming them before."""
