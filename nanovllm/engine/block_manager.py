"""BlockManager: which KV block belongs to whom, and which blocks hold content that can be reused.

In: sequences (token ids, block tables). Out: block ids, or None where there are not enough. Pure bookkeeping: the
memory itself is the runner's. Knows nothing about scheduling.

    free, no content --allocate--> in use --publish (full and computed)--> in use, in the prefix cache
            ^                        |                                        |
            |                        | free                                   | free
            |                        v                                        v
            +---- evicted by allocate (least recently used first) <-- free, content kept --match_prefix--> in use

A block's content is named by a hash chained over full blocks: xxh3_128(parent's hash + token ids), where the parent
of the first block is a hash of the adapter and the cache salt. A hash is no proof, so a hit also compares the tokens
and the *serial* of the parent block: every published content gets a number of its own, and a child remembers its
parent's, so a hit is proven link by link.

Every operation is O(1) for each block that it touches.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import xxhash

from nanovllm.batch import LAST_SAMPLED
from nanovllm.engine.sequence import Sequence

__all__ = ["BlockManager", "PrefixMatch"]


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """What the cache holds of a sequence's prefix: block ids in order, and their serials.

    pending: the next block is being computed by another sequence in a step under way.
    """

    block_ids: list[int]
    serials: list[int]
    pending: bool


@dataclass(slots=True)
class _Content:
    """What a block in the prefix cache holds. `parent`: the serial of the block before it, or the root's key."""

    block_id: int
    block_hash: bytes
    tokens: bytes
    parent: int | tuple[int, str]
    serial: int


class BlockManager:
    """Owns `num_blocks` blocks of `block_size` tokens. See the module's diagram."""

    def __init__(self, num_blocks: int, block_size: int, *, enable_prefix_caching: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self._ref_counts = array("i", bytes(4 * num_blocks))
        self._free = OrderedDict[int, None].fromkeys(range(num_blocks))  # least recently used first
        self._cache: dict[bytes, _Content] = {}  # by hash
        self._content: dict[int, _Content] = {}  # the same records by block id
        self._pending: dict[bytes, int] = {}  # hash -> id of the sequence that computes it in this step
        self._pending_before: dict[bytes, int] = {}  # the same of the step before, while that is under way too
        self._next_serial = 0

    @property
    def num_free_blocks(self) -> int:
        """Blocks that can be allocated, with or without cached content."""
        return len(self._free)

    @property
    def num_cached_blocks(self) -> int:
        """Blocks whose content can be reused, in use or free."""
        return len(self._content)

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    # -- prefix cache ---------------------------------------------------------------------------------------------

    def match_prefix(self, seq: Sequence) -> PrefixMatch:
        """The longest cached prefix of `seq`, leaving at least its last token to compute, and those whose logits are
        wanted. Changes no block."""
        block_ids: list[int] = []
        serials: list[int] = []
        if not self.enable_prefix_caching:
            return PrefixMatch(block_ids, serials, False)
        parent: int | tuple[int, str] = (seq.adapter_id, seq.cache_salt)
        for index in range(seq.num_reusable_tokens // self.block_size):
            block_hash = self._block_hash(seq, index)
            content = self._find(block_hash, self._block_tokens(seq, index), parent)
            if content is None:
                is_pending = block_hash in self._pending or block_hash in self._pending_before
                return PrefixMatch(block_ids, serials, is_pending)
            block_ids.append(content.block_id)
            serials.append(content.serial)
            parent = content.serial
        return PrefixMatch(block_ids, serials, False)

    def publish(self, seq: Sequence) -> None:
        """Enters the blocks of `seq` that are full and computed into the prefix cache. Idempotent."""
        if not self.enable_prefix_caching:
            return
        for index in range(len(seq.cached_serials), seq.num_computed_tokens // self.block_size):
            seq.cached_serials.append(self._publish_block(seq, index))

    def mark_pending(self, seq: Sequence, num_tokens: int) -> None:
        """Declares that the step under way computes `seq` up to `num_tokens`, so that others wait for those blocks.

        A block has no name yet where its last token is still unknown: nobody waits for that one.
        """
        if not self.enable_prefix_caching:
            return
        num_tokens -= seq.token_ids[num_tokens - 1] == LAST_SAMPLED
        for index in range(seq.num_computed_tokens // self.block_size, num_tokens // self.block_size):
            self._pending.setdefault(self._block_hash(seq, index), seq.seq_id)

    def clear_pending(self) -> None:
        """No step is under way any more."""
        self._pending = {}
        self._pending_before = {}

    def age_pending(self) -> None:
        """Another step is prepared while the last one is under way; the one before that has ended."""
        self._pending, self._pending_before = {}, self._pending

    def _publish_block(self, seq: Sequence, index: int) -> int:
        """Serial of the cached content equal to block `index` of `seq`, entered now if it was not there."""
        parent = seq.cached_serials[index - 1] if index else (seq.adapter_id, seq.cache_salt)
        block_hash, tokens = self._block_hash(seq, index), self._block_tokens(seq, index)
        known = self._find(block_hash, tokens, parent)
        if known is not None:
            return known.serial  # computed twice: the first copy stays the cached one
        if block_hash in self._cache:  # an orphan whose parent is gone, or a collision: the newcomer replaces it
            self._forget(self._cache[block_hash].block_id)
        content = _Content(seq.block_table[index], block_hash, tokens, parent, self._next_serial)
        self._next_serial += 1
        self._cache[block_hash] = self._content[content.block_id] = content
        return content.serial

    def _find(self, block_hash: bytes, tokens: bytes, parent: int | tuple[int, str]) -> _Content | None:
        content = self._cache.get(block_hash)
        if content is None or content.tokens != tokens or content.parent != parent:
            return None
        return content

    def _forget(self, block_id: int) -> None:
        content = self._content.pop(block_id, None)
        if content is not None:
            del self._cache[content.block_hash]

    def _block_tokens(self, seq: Sequence, index: int) -> bytes:
        return seq.token_ids[index * self.block_size : (index + 1) * self.block_size].tobytes()

    def _block_hash(self, seq: Sequence, index: int) -> bytes:
        """Hash of full block `index`, extending the sequence's chain as far as needed."""
        hashes = seq.block_hashes
        if not hashes:
            hashes.append(self._hash_block(f"{seq.adapter_id}:{seq.cache_salt}".encode(), seq, 0))
        while len(hashes) <= index:
            hashes.append(self._hash_block(hashes[-1], seq, len(hashes)))
        return hashes[index]

    def _hash_block(self, parent: bytes, seq: Sequence, index: int) -> bytes:
        return xxhash.xxh3_128_digest(parent + self._block_tokens(seq, index))

    # -- blocks ---------------------------------------------------------------------------------------------------

    def adopt(self, seq: Sequence, match: PrefixMatch) -> None:
        """Gives `seq`, which has no blocks, the matched ones; they count as computed."""
        assert not seq.block_table, "a sequence adopts a prefix before it is given blocks"
        for block_id in match.block_ids:
            if self._ref_counts[block_id] == 0:
                del self._free[block_id]
            self._ref_counts[block_id] += 1
        seq.block_table.extend(match.block_ids)
        seq.cached_serials = list(match.serials)
        seq.num_computed_tokens = len(match.block_ids) * self.block_size

    def can_allocate(self, num_tokens: int, match: PrefixMatch) -> bool:
        """Whether a sequence of `num_tokens` that adopts `match` would find enough free blocks."""
        revived = sum(1 for block_id in match.block_ids if self._ref_counts[block_id] == 0)
        return self.num_blocks_for(num_tokens) - len(match.block_ids) <= len(self._free) - revived

    def allocate(self, seq: Sequence, num_tokens: int) -> int | None:
        """Extends the block table of `seq` to hold `num_tokens`; returns the number of blocks added.

        None, and nothing changed, where there are not enough free blocks.
        """
        num_new = -(-num_tokens // self.block_size) - len(seq.block_table)
        if num_new <= 0:
            return 0
        if num_new > len(self._free):
            return None
        for _ in range(num_new):
            block_id, _unused = self._free.popitem(last=False)
            self._forget(block_id)
            self._ref_counts[block_id] = 1
            seq.block_table.append(block_id)
        return num_new

    def free(self, seq: Sequence) -> None:
        """Takes all blocks from `seq`; cached content stays until the block is reused.

        The last blocks go first into the free list, so that a prefix outlives its continuations.
        """
        for block_id in reversed(seq.block_table):
            self._ref_counts[block_id] -= 1
            if self._ref_counts[block_id] == 0:
                self._free[block_id] = None
                if block_id not in self._content:
                    self._free.move_to_end(block_id, last=False)  # nothing to keep: reuse it first
        seq.block_table = array("i")
        seq.cached_serials = []
        seq.num_computed_tokens = 0

    # -- tests ----------------------------------------------------------------------------------------------------

    def check_invariants(self, live: Iterable[Sequence]) -> None:
        """Raises AssertionError unless the books agree with each other and with the `live` sequences' block tables."""
        counts = [0] * self.num_blocks
        for seq in live:
            assert len(set(seq.block_table)) == len(seq.block_table), f"{seq} holds a block twice"
            assert len(seq.block_table) >= self.num_blocks_for(seq.num_computed_tokens), f"{seq} lacks blocks"
            assert len(seq.cached_serials) <= len(seq.block_table), f"{seq} has published blocks that it lacks"
            for block_id in seq.block_table:
                counts[block_id] += 1
        assert counts == self._ref_counts.tolist(), "reference counts differ from the block tables"
        assert set(self._free) == {b for b, n in enumerate(counts) if n == 0}, "free list differs from the counts"
        assert len(self._cache) == len(self._content), "cached hashes and cached blocks differ in number"
        for block_id, content in self._content.items():
            assert content.block_id == block_id, f"block {block_id} is filed under another id"
            assert self._cache[content.block_hash] is content, f"block {block_id} is cached under another hash"
