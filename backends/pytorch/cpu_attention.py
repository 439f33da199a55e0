"""Paged attention on the CPU: blocks gathered into rows, then torch's `scaled_dot_product_attention`.

    pool of a layer   [ 2 | num_blocks | block_size | num_kv_heads | head_dim ]      keys, values
                             |  gather by group
    group             [ 2 | sequences  | keys       | num_kv_heads | head_dim ]

Query heads that share a KV head become rows of one product, so that keys and values are read once and not once for
each of them: for decodes in bf16 that is ten times as quick as enable_gqa, for chunks of 160 and 512 tokens 1.4 and
1.05 times. Indices and masks are made once a step and serve all layers.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from backends.pytorch.attention import HeadGains
from backends.pytorch.rotary import Rotation, rotate
from backends.pytorch.step_groups import Group, group_sequences
from nanovllm.architectures import AttentionSpec, Geometry
from nanovllm.batch import Batch

__all__ = ["CPUAttention"]

_GROUP_COST_BYTES = 2**18
"""What one more group costs, in bytes of padding that could be read instead (measured: some 40 us against 6 GB/s)."""

_MAX_JOINT_MASK = 2**24  # numbers of a mask for joint rows; where it would be larger, enable_gqa needs a smaller one


class CPUAttention:
    """`PagedAttention` with torch's own operators; one pool a layer."""

    def __init__(self, geometry: Geometry, dtype: torch.dtype, device: torch.device) -> None:
        self._geometry = geometry
        self._dtype = dtype
        self._device = device
        self._pools: list[Tensor] = []

    @property
    def is_allocated(self) -> bool:
        return bool(self._pools)

    def allocate(self, num_blocks: int, block_size: int) -> None:
        self._pools = []
        g = self._geometry
        shape = (2, num_blocks, block_size, g.num_kv_heads, g.head_dim)
        # zeros are written, not only promised, so that no step pays for page faults
        self._pools = [torch.empty(shape, dtype=self._dtype, device=self._device).fill_(0) for _ in range(g.num_layers)]

    def free(self) -> None:
        self._pools = []

    def plan(self, batch: Batch) -> "_Plan":
        return _Plan(batch, self._pools[0], self._dtype, self._device)

    def attend(
        self, plan: "_Plan", spec: AttentionSpec, rotation: Rotation | None, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        q, k, v = (
            x.view(len(x), heads, spec.head_dim)
            for x, heads in ((query, spec.num_heads), (key, spec.num_kv_heads), (value, spec.num_kv_heads))
        )
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        pool = self._pools[spec.layer]
        slots = pool.view(2, -1, spec.num_kv_heads, spec.head_dim)
        slots[0].index_copy_(0, plan.slots, k)
        slots[1].index_copy_(0, plan.slots, v)
        groups = plan.groups(spec.window)
        if len(groups) == 1:
            return groups[0].attend(q, k, v, pool, spec).flatten(1)
        result = torch.empty_like(q, memory_format=torch.contiguous_format)
        for group in groups:
            result[group.rows] = group.attend(q[group.rows], k, v, pool, spec)
        return result.flatten(1)

    def attend_normed(self, gains: HeadGains) -> None:
        """Norms are operations of their own here."""


class _Plan:
    """What all layers of a step share; groups by window are made when the first layer asks for them."""

    def __init__(self, batch: Batch, pool: Tensor, dtype: torch.dtype, device: torch.device) -> None:
        self._batch = batch
        self._block_size = pool.shape[2]
        self._spare_blocks = _GROUP_COST_BYTES // max(1, 2 * pool[0, 0].numel() * pool.element_size())
        self._dtype = dtype
        self._device = device
        self._groups: dict[int | None, list[_DeviceGroup]] = {}
        self.slots = torch.from_numpy(batch.slot_mapping.astype("int64")).to(device)

    def groups(self, window: int | None) -> "list[_DeviceGroup]":
        if window not in self._groups:
            groups = group_sequences(self._batch, self._block_size, window, self._spare_blocks)
            self._groups[window] = [
                _DeviceGroup(group, window, self._block_size, self._dtype, self._device) for group in groups
            ]
        return self._groups[window]


class _DeviceGroup:
    """A `Group` with its indices and masks on the device, and attention over it."""

    def __init__(
        self, group: Group, window: int | None, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.rows: Tensor | slice = torch.from_numpy(group.rows).to(device)
        if len(group.first_query) == 1:
            self.rows = slice(int(group.rows[0]), int(group.rows[-1]) + 1)
        self._num_seqs, self._num_queries = len(group.first_query), group.num_queries
        self._is_fresh = group.is_fresh
        self._is_causal = group.is_fresh and (window is None or window >= group.num_queries)
        self._blocks = torch.from_numpy(group.blocks.ravel()).to(device)
        self._masks: dict[int, Tensor] = {}
        first_key, first_query = (torch.from_numpy(x).to(device) for x in (group.first_key, group.first_query))
        num_keys = group.num_queries if group.is_fresh else group.blocks.shape[1] * block_size
        self._mask = _mask(first_query, group.num_queries, first_key, num_keys, window).to(dtype)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, pool: Tensor, spec: AttentionSpec) -> Tensor:
        """query: (rows of the group, num_heads, head_dim). key and value: (num_tokens, num_kv_heads, head_dim), those
        of the whole step. Returns query's shape."""
        shape = (self._num_seqs, -1, spec.num_kv_heads, spec.head_dim)
        if self._is_fresh:
            seen = [part[self.rows] for part in (key, value)]
        else:
            seen = [part.index_select(0, self._blocks) for part in pool]
        k, v = (part.view(shape).transpose(1, 2) for part in seen)  # (num_seqs, num_kv_heads, num_keys, head_dim)
        q = query.view(self._num_seqs, self._num_queries, spec.num_heads, spec.head_dim).transpose(1, 2)
        shared = spec.num_heads // spec.num_kv_heads
        if shared * self._mask.numel() > _MAX_JOINT_MASK:
            mask = None if self._is_causal else self._mask[:, None]
            return _attend(q, k, v, mask, spec).transpose(1, 2).reshape(query.shape)
        joint = q.reshape(self._num_seqs, spec.num_kv_heads, shared * self._num_queries, spec.head_dim)
        out = _attend(joint, k, v, self._joint_mask(shared), spec)
        return out.view(self._num_seqs, spec.num_heads, self._num_queries, -1).transpose(1, 2).reshape(query.shape)

    def _joint_mask(self, shared: int) -> Tensor:
        """(num_seqs, 1, shared * num_queries, num_keys), or one row for all of them."""
        if shared not in self._masks:
            repeats = 1 if self._num_queries == 1 else shared
            self._masks[shared] = self._mask.repeat(1, repeats, 1)[:, None]
        return self._masks[shared]


def _mask(first_query: Tensor, num_queries: int, first_key: Tensor, num_keys: int, window: int | None) -> Tensor:
    """0 where a new token sees a key and -inf elsewhere, (num_seqs, num_queries, num_keys)."""
    device = first_query.device
    positions = first_query[:, None, None] + torch.arange(num_queries, device=device)[:, None]
    age = positions - (first_key[:, None, None] + torch.arange(num_keys, device=device))  # in tokens
    hidden = age < 0 if window is None else (age < 0) | (age >= window)
    return torch.zeros(hidden.shape, device=device).masked_fill_(hidden, -math.inf)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, spec: AttentionSpec) -> Tensor:
    """(num_seqs, heads, queries, head_dim); the heads of q are a multiple of those of k and v. mask: None where the
    queries are as many as the keys, and each sees those up to its own."""
    if spec.softcap is None:
        is_grouped = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=mask is None, scale=spec.scale, enable_gqa=is_grouped
        )
    if q.shape[1] != k.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = torch.matmul(q, k.transpose(2, 3)).float() * spec.scale
    scores = (scores / spec.softcap).tanh_().mul_(spec.softcap)
    if mask is None:
        future = torch.ones(scores.shape[2:], dtype=torch.bool, device=q.device).triu_(1)
        scores.masked_fill_(future, -math.inf)
    else:
        scores += mask
    return torch.matmul(scores.softmax(-1).to(v.dtype), v)
