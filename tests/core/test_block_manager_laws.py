"""Laws of the block manager: what a hit gives holds that prefix, whatever was allocated, freed or evicted before."""

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from nanovllm import SamplingParams
from nanovllm.batch import LAST_SAMPLED
from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.sequence import Sequence

BLOCK_SIZE = 2
NUM_BLOCKS = 7
MAX_TOKENS = 11  # fits the blocks when alone
HASH = "nanovllm.engine.block_manager.xxhash.xxh3_128_digest"

Hash = Callable[[bytes], bytes]
Written = tuple[int, str, tuple[int, ...]]  # adapter, salt and all tokens up to and with the one that was written

token_lists = st.lists(st.integers(0, 1), min_size=1, max_size=MAX_TOKENS)
adapters = st.integers(0, 1)
salts = st.sampled_from(["", "tenant", "1:"])


def make_sequence(token_ids: list[int], *, seq_id: int = 0, adapter_id: int = 0, salt: str = "") -> Sequence:
    return Sequence(seq_id, token_ids, SamplingParams(), max_tokens=100, adapter_id=adapter_id, cache_salt=salt)


def written_at(seq: Sequence, position: int) -> Written:
    return seq.adapter_id, seq.cache_salt, tuple(seq.token_ids[: position + 1])


@dataclass
class Memory:
    """What a runner's pool would hold: for each slot, everything that the key and value written there depend on."""

    slots: dict[tuple[int, int], Written] = field(default_factory=dict)

    def write(self, seq: Sequence, start: int, end: int) -> None:
        for position in range(start, end):
            slot = seq.block_table[position // BLOCK_SIZE], position % BLOCK_SIZE
            self.slots[slot] = written_at(seq, position)

    def check(self, seq: Sequence) -> None:
        """Every computed token of `seq` lies where its block table says."""
        for position in range(seq.num_computed_tokens):
            slot = seq.block_table[position // BLOCK_SIZE], position % BLOCK_SIZE
            assert self.slots.get(slot) == written_at(seq, position), f"{seq}: position {position} is not in {slot}"


class BlockManagerMachine(RuleBasedStateMachine):
    """Sequences come, grow, are preempted and go, sharing prefixes over a small alphabet."""

    live = Bundle("live")
    preempted = Bundle("preempted")

    def __init__(self) -> None:
        super().__init__()
        self.manager = BlockManager(NUM_BLOCKS, BLOCK_SIZE)
        self.memory = Memory()
        self.running: dict[int, Sequence] = {}
        self.num_sequences = 0

    def num_blocks_in_use(self) -> int:
        return len({block_id for seq in self.running.values() for block_id in seq.block_table})

    def admit(self, seq: Sequence) -> bool:
        """As the scheduler does it: match, see whether the rest fits, adopt, allocate."""
        manager = self.manager
        match = manager.match_prefix(seq)
        num_cached = len(match.block_ids) * BLOCK_SIZE
        assert num_cached < seq.num_tokens, "a hit left no token to compute"
        assert len(match.serials) == len(match.block_ids)
        in_use = {block_id for other in self.running.values() for block_id in other.block_table}
        revived = len(set(match.block_ids) - in_use)
        missing = -(-seq.num_tokens // BLOCK_SIZE) - len(match.block_ids)
        fits = missing <= NUM_BLOCKS - len(in_use) - revived
        assert manager.can_allocate(seq.num_tokens, match) is fits
        if not fits:
            return False
        manager.adopt(seq, match)
        assert seq.num_computed_tokens == num_cached
        self.memory.check(seq)
        assert manager.allocate(seq, seq.num_tokens) == missing
        assert len(seq.block_table) == -(-seq.num_tokens // BLOCK_SIZE)
        self.running[seq.seq_id] = seq
        return True

    @rule(target=live, tokens=token_lists, adapter=adapters, salt=salts)
    def start(self, tokens: list[int], adapter: int, salt: str) -> object:
        self.num_sequences += 1
        seq = make_sequence(tokens, seq_id=self.num_sequences, adapter_id=adapter, salt=salt)
        return seq if self.admit(seq) else multiple()

    @rule(tokens=token_lists, adapter=adapters, salt=salts)
    def serve(self, tokens: list[int], adapter: int, salt: str) -> None:
        seq = self.start(tokens, adapter, salt)
        if isinstance(seq, Sequence):
            self.compute(seq, MAX_TOKENS)
            self.finish(seq)

    @rule(seq=live, count=st.integers(1, MAX_TOKENS))
    def compute(self, seq: Sequence, count: int) -> None:
        start = seq.num_computed_tokens
        seq.num_computed_tokens = min(seq.num_tokens, start + count)
        self.memory.write(seq, start, seq.num_computed_tokens)
        self.manager.publish(seq)

    @rule(seq=live, token=st.integers(0, 1))
    def grow(self, seq: Sequence, token: int) -> None:
        if seq.num_tokens == MAX_TOKENS:
            return
        before, num_free = array("i", seq.block_table), self.manager.num_free_blocks
        added = self.manager.allocate(seq, seq.num_tokens + 1)
        if added is None:
            assert num_free == 0
            assert (seq.block_table, self.manager.num_free_blocks) == (before, num_free)
        else:
            assert seq.block_table[: len(before)] == before
            assert self.manager.num_free_blocks == num_free - added
            seq.token_ids.append(token)

    @rule(seq=consumes(live))
    def finish(self, seq: Sequence) -> None:
        self.manager.free(seq)
        del self.running[seq.seq_id]
        assert (len(seq.block_table), seq.num_computed_tokens) == (0, 0)

    @rule(target=preempted, seq=consumes(live))
    def preempt(self, seq: Sequence) -> Sequence:
        self.finish(seq)
        return seq

    @rule(target=live, seq=consumes(preempted))
    def resume(self, seq: Sequence) -> object:
        return seq if self.admit(seq) else multiple()

    @invariant()
    def books_agree(self) -> None:
        self.manager.check_invariants(self.running.values())
        assert self.manager.num_free_blocks + self.num_blocks_in_use() == NUM_BLOCKS
        assert self.manager.num_cached_blocks <= NUM_BLOCKS

    @invariant()
    def every_live_sequence_keeps_what_it_computed(self) -> None:
        for seq in self.running.values():
            self.memory.check(seq)

    def teardown(self) -> None:
        for seq in self.running.values():
            self.manager.free(seq)
        self.manager.check_invariants([])
        assert self.manager.num_free_blocks == NUM_BLOCKS


class CollidingBlockManagerMachine(BlockManagerMachine):
    """The same under a hash of two values: a hash alone must never decide."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(HASH, two_valued_hash)

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            self.patch.undo()


def two_valued_hash(data: bytes) -> bytes:
    return bytes([sum(data) % 2])


TestBlockManager = BlockManagerMachine.TestCase
TestBlockManager.settings = settings(max_examples=80, stateful_step_count=40)
TestBlockManagerUnderCollisions = CollidingBlockManagerMachine.TestCase
TestBlockManagerUnderCollisions.settings = settings(max_examples=80, stateful_step_count=40)


class OneAtATime:
    """What the cache must hold when sequences run one after the other: a list of blocks, least recently used first.

    An entry is the prefix that the block ends, or None for a block without content.
    """

    def __init__(self, num_blocks: int) -> None:
        self.free: list[tuple[int, ...] | None] = [None] * num_blocks

    def run(self, tokens: list[int]) -> int:
        """Serves a sequence and forgets it; returns the number of blocks that it found."""
        full = [tuple(tokens[:end]) for end in range(BLOCK_SIZE, len(tokens) + 1, BLOCK_SIZE)]
        usable = [prefix for prefix in full if len(prefix) < len(tokens)]
        num_hits = next((i for i, prefix in enumerate(usable) if prefix not in self.free), len(usable))
        for prefix in full[:num_hits]:
            self.free.remove(prefix)
        num_blocks = -(-len(tokens) // BLOCK_SIZE)
        del self.free[: num_blocks - num_hits]
        if num_blocks > len(full):
            self.free.insert(0, None)
        for prefix in reversed(full):
            if prefix in self.free:  # a copy of it was kept: this one is not needed
                self.free.insert(0, None)
            else:
                self.free.append(prefix)
        return num_hits


@given(st.lists(token_lists, max_size=25))
@settings(max_examples=200)
def test_hits_and_evictions_are_those_of_a_list_in_order_of_use(prompts: list[list[int]]) -> None:
    manager, model = BlockManager(NUM_BLOCKS, BLOCK_SIZE), OneAtATime(NUM_BLOCKS)
    for tokens in prompts:
        seq = make_sequence(tokens)
        match = manager.match_prefix(seq)
        assert len(match.block_ids) == model.run(tokens)
        serve(manager, seq)
        assert manager.num_cached_blocks == sum(prefix is not None for prefix in model.free)
        manager.check_invariants([])


def serve(manager: BlockManager, seq: Sequence) -> int:
    """Runs `seq` alone, from admission to its end; returns the number of tokens that it found cached."""
    manager.adopt(seq, manager.match_prefix(seq))
    num_cached = seq.num_computed_tokens
    assert manager.allocate(seq, seq.num_tokens) is not None
    seq.num_computed_tokens = seq.num_tokens
    manager.publish(seq)
    manager.free(seq)
    return num_cached


@given(st.lists(st.tuples(token_lists, adapters, salts), min_size=1, max_size=8))
def test_with_room_for_all_every_full_block_is_found_again_by_its_own_tenant(
    served: list[tuple[list[int], int, str]],
) -> None:
    manager = BlockManager(100, BLOCK_SIZE)
    computed: set[tuple[int, str, tuple[int, ...]]] = set()
    for tokens, adapter, salt in served:
        full = [(adapter, salt, tuple(tokens[:end])) for end in range(BLOCK_SIZE, len(tokens) + 1, BLOCK_SIZE)]
        usable = full[: (len(tokens) - 1) // BLOCK_SIZE]
        num_hits = next((i for i, prefix in enumerate(usable) if prefix not in computed), len(usable))
        assert serve(manager, make_sequence(tokens, adapter_id=adapter, salt=salt)) == num_hits * BLOCK_SIZE
        computed.update(full)


def test_a_prompt_that_is_wholly_cached_still_computes_its_last_token() -> None:
    manager = BlockManager(4, BLOCK_SIZE)
    serve(manager, make_sequence([1, 2, 3, 4]))
    again = make_sequence([1, 2, 3, 4])
    assert len(manager.match_prefix(again).block_ids) == 1  # not 2: [3, 4] ends with the last token
    assert len(manager.match_prefix(make_sequence([1, 2, 3, 4, 5])).block_ids) == 2


def test_a_prefix_outlives_its_continuations() -> None:
    manager = BlockManager(4, BLOCK_SIZE)
    serve(manager, make_sequence([1, 1, 2, 2, 3, 3, 4, 4]))
    serve(manager, make_sequence([9, 9, 8, 8]))  # takes two blocks: the last two of the first sequence
    assert len(manager.match_prefix(make_sequence([1, 1, 2, 2, 3, 3, 4, 4])).block_ids) == 2


def test_the_least_recently_used_prefix_is_evicted_first() -> None:
    manager = BlockManager(3, BLOCK_SIZE)
    old, mid, new = [1, 1, 5], [2, 2, 5], [3, 3, 5]
    for tokens in (old, mid):
        serve(manager, make_sequence(tokens[:2]))
    assert serve(manager, make_sequence(old[:2])) == 0  # wholly cached: computed again, and its block is not doubled
    assert manager.num_cached_blocks == 2
    assert serve(manager, make_sequence(old)) == 2  # a use makes it the most recent
    serve(manager, make_sequence(new[:2]))
    serve(manager, make_sequence([4, 4]))
    assert [len(manager.match_prefix(make_sequence(t)).block_ids) for t in (old, mid, new)] == [1, 0, 1]


def test_a_block_without_content_is_used_before_cached_content_is_evicted() -> None:
    manager = BlockManager(3, BLOCK_SIZE)
    serve(manager, make_sequence([1, 1]))
    serve(manager, make_sequence([2]))
    serve(manager, make_sequence([3]))
    serve(manager, make_sequence([4]))
    assert len(manager.match_prefix(make_sequence([1, 1, 5])).block_ids) == 1


@pytest.mark.parametrize(("adapter", "salt"), [(1, ""), (0, "tenant"), (1, "tenant")])
def test_a_prefix_is_shared_only_within_its_adapter_and_salt(adapter: int, salt: str) -> None:
    manager = BlockManager(4, BLOCK_SIZE)
    serve(manager, make_sequence([1, 2, 3]))
    assert manager.match_prefix(make_sequence([1, 2, 3], adapter_id=adapter, salt=salt)).block_ids == []
    serve(manager, make_sequence([1, 2, 3], adapter_id=adapter, salt=salt))
    assert len(manager.match_prefix(make_sequence([1, 2, 3], adapter_id=adapter, salt=salt)).block_ids) == 1


@pytest.mark.parametrize("digest", [two_valued_hash, lambda data: b"same"], ids=["two values", "constant"])
def test_a_colliding_hash_serves_nothing_that_is_not_the_prefix(digest: Hash, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HASH, digest)
    manager = BlockManager(4, BLOCK_SIZE)
    serve(manager, make_sequence([1, 1, 2, 2]))
    assert manager.match_prefix(make_sequence([3, 3, 2, 2, 5])).block_ids == []
    assert manager.match_prefix(make_sequence([2, 2, 5])).block_ids == []  # the same block, but as a second one
    manager.check_invariants([])


def test_under_collisions_a_block_is_no_hit_after_a_prefix_that_took_the_place_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(HASH, two_valued_hash)
    manager = BlockManager(8, BLOCK_SIZE)
    serve(manager, make_sequence([1, 1, 7, 8, 5]))
    assert len(manager.match_prefix(make_sequence([1, 1, 7, 8, 5])).block_ids) == 2
    serve(manager, make_sequence([2, 2, 5]))  # collides with [1, 1], whose place it takes
    assert len(manager.match_prefix(make_sequence([2, 2, 7, 8, 5])).block_ids) == 1


def test_the_second_block_of_one_prefix_is_no_hit_after_the_same_tokens_follow_another() -> None:
    manager = BlockManager(8, BLOCK_SIZE)
    serve(manager, make_sequence([1, 1, 7, 7, 5]))
    assert len(manager.match_prefix(make_sequence([2, 2, 7, 7, 5])).block_ids) == 0
    serve(manager, make_sequence([2, 2, 5]))
    assert len(manager.match_prefix(make_sequence([2, 2, 7, 7, 5])).block_ids) == 1


def test_a_block_that_the_step_under_way_computes_is_pending_until_the_step_ends() -> None:
    manager = BlockManager(8, BLOCK_SIZE)
    first, second = make_sequence([1, 1, 2, 2, 3]), make_sequence([1, 1, 2, 2, 4], seq_id=1)
    assert not manager.match_prefix(second).pending
    manager.allocate(first, 4)
    manager.mark_pending(first, 4)
    assert manager.match_prefix(second).pending
    assert not manager.match_prefix(make_sequence([2, 2, 5])).pending
    manager.clear_pending()
    assert not manager.match_prefix(second).pending


def test_a_block_stays_pending_while_the_next_step_is_prepared_and_no_longer() -> None:
    manager = BlockManager(8, BLOCK_SIZE)
    first, second = make_sequence([1, 1, 2, 2, 3]), make_sequence([1, 1, 2, 2, 4], seq_id=1)
    manager.allocate(first, 4)
    manager.mark_pending(first, 4)
    manager.age_pending()
    assert manager.match_prefix(second).pending
    manager.age_pending()
    assert not manager.match_prefix(second).pending


def test_a_block_whose_last_token_is_unknown_has_no_name_yet() -> None:
    manager = BlockManager(8, BLOCK_SIZE)
    seq = make_sequence([1, 1, 2, LAST_SAMPLED])
    manager.allocate(seq, 4)
    manager.mark_pending(seq, 4)
    seq.token_ids[-1] = 3
    serve(manager, make_sequence([1, 1, 2, 3, 5], seq_id=1))
    seq.num_computed_tokens = 4
    manager.publish(seq)
    assert len(seq.cached_serials) == 2
    assert len(manager.match_prefix(make_sequence([1, 1, 2, 3, 7], seq_id=2)).block_ids) == 2
    assert manager.num_cached_blocks == 2


def test_without_prefix_caching_nothing_is_kept_found_or_waited_for() -> None:
    manager = BlockManager(4, BLOCK_SIZE, enable_prefix_caching=False)
    serve(manager, make_sequence([1, 1, 2]))
    seq = make_sequence([1, 1, 2])
    manager.allocate(seq, 3)
    manager.mark_pending(seq, 3)
    match = manager.match_prefix(make_sequence([1, 1, 2]))
    assert (match.block_ids, match.pending, manager.num_cached_blocks) == ([], False, 0)
