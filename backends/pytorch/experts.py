"""A mixture of experts: the tokens of each expert gathered, computed together and added up where they came from."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from backends.pytorch.linear import LinearLayer
from nanovllm.architectures import Mixture

__all__ = ["Experts"]


class Experts:
    """See `Ops.moe`. router: (num_experts, features). layers: of each expert, gate and up as one, and down.
    gated: of gate and up.

    A token's experts are added up in the order of their numbers, whatever else is in the batch.
    """

    def __init__(
        self,
        router: Tensor,
        layers: Sequence[tuple[LinearLayer, LinearLayer]],
        mixture: Mixture,
        gated: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        self._router = router
        self._layers = layers
        self._num_chosen = mixture.num_chosen
        self._normalize = mixture.normalize
        self._gated = gated

    def __call__(self, x: Tensor) -> Tensor:
        """x and result: (num_tokens, features)."""
        shares, experts = self._choose(x)
        order = experts.flatten().argsort(stable=True)  # by expert, then by token
        tokens = order // self._num_chosen
        counts = torch.bincount(experts.flatten(), minlength=len(self._layers)).tolist()
        shares = shares.flatten()[order, None]
        result = torch.zeros_like(x, dtype=torch.float32)
        start = 0
        for (gate_up, down), count in zip(self._layers, counts, strict=True):
            if count:
                part = tokens[start : start + count]
                gate, up = gate_up(x[part]).chunk(2, -1)
                out = down(self._gated(gate, up))
                result.index_add_(0, part, out * shares[start : start + count])
            start += count
        return result.to(x.dtype)

    def _choose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Shares, float32, and numbers of the chosen experts, (num_tokens, num_chosen); of equal shares the first."""
        shares = torch.nn.functional.linear(x, self._router).float().softmax(-1)
        largest, experts = shares.sort(dim=-1, descending=True, stable=True)
        chosen = largest[:, : self._num_chosen]
        if self._normalize:
            chosen = chosen / chosen.sum(-1, keepdim=True)
        return chosen, experts[:, : self._num_chosen]
