"""Splitting a step into runs: nothing is lost, and what is padded stays cheap."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from paged_driver import PagedSequence, Wanted, Work, pack

from backends.ort.step_runs import StepRun, split_step
from nanovllm.batch import Batch

BLOCK_SIZE = 8
RUN_COST = 1000.0


def work(num_tokens: int, context: int, wanted: Wanted = "last") -> Work:
    total = context + num_tokens
    random = np.random.default_rng(total)
    blocks = random.permutation(999)[: -(-total // BLOCK_SIZE)].tolist()
    return Work(PagedSequence(random.integers(0, 99, total).tolist(), blocks, context), num_tokens, wanted)


def split(batch: Batch) -> list[StepRun]:
    return split_step(batch, BLOCK_SIZE, RUN_COST, np.zeros(batch.num_logits, np.bool_))


def groups(*items: Work) -> list[list[int]]:
    """Query lengths of each run, ascending."""
    runs = split(pack(items, BLOCK_SIZE))
    return sorted(np.diff(run.inputs["query_start"]).tolist() for run in runs)


def test_decodes_of_like_contexts_run_together() -> None:
    assert groups(*[work(1, context) for context in range(100, 148)]) == [[1] * 48]


def test_a_long_chunk_runs_apart_from_the_decodes() -> None:
    assert groups(work(1, 100), work(256, 0), work(1, 120)) == [[1, 1], [256]]


def test_short_prompts_of_any_length_run_together() -> None:
    assert groups(work(3, 0), work(9, 0), work(5, 0), work(1, 0)) == [[3, 9, 5, 1]]


def test_a_very_long_context_does_not_make_every_decode_as_long() -> None:
    assert groups(*[work(1, 50)] * 10, work(1, 4000)) == [[1], [1] * 10]


def test_long_chunks_of_one_length_run_together() -> None:
    assert groups(work(128, 0), work(128, 0)) == [[128, 128]]


def test_block_tables_are_as_wide_as_the_longest_sequence_needs() -> None:
    (run,) = split(pack([work(1, 7), work(1, 15), work(1, 16)], BLOCK_SIZE))
    assert run.inputs["block_tables"].shape == (3, 3)


WORK = st.builds(
    work,
    st.one_of(st.just(1), st.integers(1, 60)),
    st.integers(0, 300),
    st.sampled_from(["last", "all", "none"]),
)


@given(st.lists(WORK, min_size=1, max_size=12), st.floats(0, 1e5), st.integers(0, 2**32 - 1))
def test_every_token_and_every_row_is_in_exactly_one_run(items: list[Work], run_cost: float, seed: int) -> None:
    batch = pack(items, BLOCK_SIZE)
    is_greedy = np.random.default_rng(seed).random(batch.num_logits) < 0.5
    others = np.flatnonzero(~is_greedy)
    rows, slots = [], []
    for run in split_step(batch, BLOCK_SIZE, run_cost, is_greedy):
        inputs = run.inputs
        assert all(array.flags.c_contiguous for array in inputs.values())
        slots += inputs["slot_mapping"].tolist()
        for name, places in (("logits_indices", others[run.rows]), ("greedy_indices", run.greedy_rows)):
            rows += places.tolist()
            token_rows = inputs[name]
            assert len(token_rows) == len(places)
            original = batch.logits_indices[places]
            np.testing.assert_array_equal(inputs["slot_mapping"][token_rows], batch.slot_mapping[original])
            np.testing.assert_array_equal(inputs["token_ids"][token_rows], batch.token_ids[original])
        assert is_greedy[run.greedy_rows].all()
        np.testing.assert_array_equal(inputs["positions"][inputs["query_start"][:-1]], inputs["context_lens"])
    assert sorted(rows) == list(range(batch.num_logits))
    assert sorted(slots) == sorted(batch.slot_mapping.tolist())


@given(st.lists(WORK, min_size=1, max_size=12))
def test_the_split_is_never_dearer_than_one_run_each(items: list[Work]) -> None:
    def cost(query_lens: list[int], totals: list[int]) -> float:
        return RUN_COST + len(totals) * max(query_lens) * max(totals)

    apart = sum(cost([item.num_tokens], [len(item.sequence.tokens)]) for item in items)
    together = 0.0
    for run in split(pack(items, BLOCK_SIZE)):
        query_lens = np.diff(run.inputs["query_start"])
        together += cost(query_lens.tolist(), (query_lens + run.inputs["context_lens"]).tolist())
    assert together <= apart
