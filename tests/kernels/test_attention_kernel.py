"""The attention kernel: it says what the stock body says, and nothing but a query's own sequence changes its bits."""

from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
from attention_model import Float64Array, exact_output
from attention_node import POOLS, AttentionShape, Step, open_node, random_step
from attention_pools import Arrays, read_pool
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export.paged_attention import KV_DTYPES, OP_TYPES, KVDType

QWEN = AttentionShape(num_heads=14, num_kv_heads=2, head_size=64, block_size=32)
every_dtype = pytest.mark.parametrize("kv_dtype", KV_DTYPES)
MIXED = [(5, 1), (0, 20), (700, 3), (255, 2), (256, 1), (0, 150), (511, 1), (512, 1)]

open_node = cache(open_node)


@st.composite
def shapes(draw: st.DrawFn) -> AttentionShape:
    num_kv_heads = draw(st.integers(1, 4))
    head_size = draw(st.sampled_from([2, 7, 16, 33, 64, 80, 96, 128, 256]))
    return AttentionShape(
        num_heads=num_kv_heads * draw(st.integers(1, 9)),
        num_kv_heads=num_kv_heads,
        head_size=head_size,
        rotary_dim=draw(st.none() | st.integers(1, head_size // 2).map(lambda half: 2 * half)),
        rotary_interleaved=draw(st.integers(0, 1)),
        window=draw(st.sampled_from([0, 0, 1, 5, 130, 600])),
        softcap=draw(st.sampled_from([0.0, 0.0, 2.0, 50.0])),
        block_size=draw(st.sampled_from([1, 4, 16, 32])),
        kv_dtype=draw(st.sampled_from(KV_DTYPES)),
    )


lens = st.lists(st.tuples(st.integers(0, 700), st.one_of(st.just(1), st.integers(1, 80))), min_size=1, max_size=6)
seeds = st.integers(0, 2**32 - 1)
given_steps = settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


WEIGHT_ROUNDING = 5e-4
"""Of the largest value, for 8-bit queries: weights of 15 bits err by 2e-3 if all of 128 keys err alike."""

STEP = {"float32": 2e-6, "bfloat16": 2.0**-8, "int8": 1 / 127}
"""How far apart stored keys may be, as a share of the largest in their head: they were rotated to other last bits."""


def assert_pools_equal_where_written(found: Arrays, expected: Arrays, kv_dtype: KVDType) -> bool:
    """Values are stored to the same bits, keys up to one step. Returns whether all pools have the same bits."""
    same = True
    for kind in ("key", "value"):
        ours, stock = (read_pool(outputs, kind, "_out") for outputs in (found, expected))
        written = ~np.isnan(ours)
        assert not stock[~written].any(), "the stock body wrote a slot that the kernel did not"
        equal = np.array_equal(ours[written], stock[written])
        same &= equal
        if kind == "value":
            assert equal
        else:
            largest = np.nan_to_num(np.abs(stock)).max(-1, keepdims=True)
            apart = np.abs(np.where(written, ours, stock) - stock)
            assert (apart <= STEP[kv_dtype] * largest * 1.001 + 2e-6).all()
    return same


def allowed_outputs(step: Step, outputs: Arrays, instruction_set: str) -> tuple[tuple[Float64Array, float], ...]:
    """What the contract lets a kernel of that instruction set answer, and how far from it, for features of size 1."""
    exact = (exact_output(step, outputs), 2e-5)
    if step.shape.kv_dtype != "int8" or instruction_set != "avx512":
        return (exact,)
    largest = np.nan_to_num(np.abs(read_pool(outputs, "value", "_out"))).max()
    return exact, (exact_output(step, outputs, rounded_queries=True), WEIGHT_ROUNDING * float(largest))


def assert_allowed(step: Step, outputs: Arrays, instruction_set: str, size: float = 1.0) -> None:
    found = outputs["output"]
    allowed = allowed_outputs(step, outputs, instruction_set)
    close = [np.allclose(found, output, atol=tolerance * max(size, 1) ** 3, rtol=3e-5) for output, tolerance in allowed]
    apart = [float(np.abs(found - output).max()) for output, _ in allowed]
    assert any(close), f"off by {apart}, allowed are {[tolerance for _, tolerance in allowed]}"


@given_steps
@given(shape=shapes(), lens=lens, seed=seeds, shared=st.integers(0, 3), size=st.sampled_from([0.1, 1.0, 5.0]))
def test_it_agrees_with_the_stock_body_and_reads_no_stale_slot(
    kernel_library: Path,
    instruction_set: str,
    shape: AttentionShape,
    lens: list[tuple[int, int]],
    seed: int,
    shared: int,
    size: float,
) -> None:
    step = random_step(shape, lens, seed, shared_blocks=shared, size=size)
    expected = step.run(open_node(shape, None), nan=False)
    found = step.run(open_node(shape, kernel_library))  # slots past the lengths hold NaN
    same = assert_pools_equal_where_written(found, expected, shape.kv_dtype)
    assert_allowed(step, found, instruction_set, size)
    if shape.kv_dtype == "int8" and instruction_set == "avx512":
        return  # may multiply integers, where queries are rounded
    # Scores grow with size squared, and their rounding with them; the values that they weigh grow with size.
    tolerance = 2e-5 if same or shape.kv_dtype == "float32" else 1e-2
    np.testing.assert_allclose(found["output"], expected["output"], atol=tolerance * max(size, 1) ** 3, rtol=3e-5)


@given_steps
@given(shape=shapes(), lens=lens, seed=seeds, size=st.sampled_from([0.1, 1.0, 5.0]))
def test_it_agrees_with_attention_in_float64_over_what_it_stored(
    kernel_library: Path,
    instruction_set: str,
    shape: AttentionShape,
    lens: list[tuple[int, int]],
    seed: int,
    size: float,
) -> None:
    step = random_step(shape, lens, seed, size=size)
    found = step.run(open_node(shape, kernel_library))
    assert_allowed(step, found, instruction_set, size)


@every_dtype
@pytest.mark.parametrize("head_size", [64, 80, 96, 128, 256])
def test_every_usual_head_size_agrees_in_long_and_short_sequences(
    kernel_library: Path, instruction_set: str, head_size: int, kv_dtype: KVDType
) -> None:
    shape = AttentionShape(num_heads=6, num_kv_heads=2, head_size=head_size, kv_dtype=kv_dtype)
    step = random_step(shape, MIXED, shared_blocks=3)
    found = step.run(open_node(shape, kernel_library))
    assert_allowed(step, found, instruction_set)
    expected = step.run(open_node(shape, None), nan=False)
    np.testing.assert_allclose(expected["output"], exact_output(step, expected), atol=1e-5)
    assert_pools_equal_where_written(found, expected, kv_dtype)


@every_dtype
def test_what_is_stored_is_rounded_as_the_contract_says(kernel_library: Path, kv_dtype: KVDType) -> None:
    """Values between two steps, ties, zeros and tiny ones, by the kernel and by the stock body."""
    shape = replace(QWEN, kv_dtype=kv_dtype)
    step = random_step(shape, [(0, 6)])
    tie, ties = np.float32(1 + 2.0**-8), np.arange(-64, 64) + np.float32(0.5)
    step.inputs["value"][:] = np.stack(
        [np.full(128, tie), np.full(128, tie + 2.0**-7), np.zeros(128), np.full(128, 1e-38), ties, ties * 3.7]
    )
    step.inputs["value"][4, ::64] = 127  # whose scale is 1, so that the others are ties
    expected = {
        "float32": step.inputs["value"],
        "bfloat16": step.inputs["value"].astype(ml_dtypes.bfloat16).astype(np.float32),
        "int8": _by_contract(step.inputs["value"]),
    }[kv_dtype]
    for library in (kernel_library, None):
        outputs = step.run(open_node(shape, library), nan=library is not None)
        stored = read_pool(outputs, "value", "_out").reshape(-1, 128)[step.inputs["slot_mapping"]]
        np.testing.assert_array_equal(stored, expected)


def _by_contract(values: np.ndarray) -> np.ndarray:
    heads = values.reshape(len(values), -1, 64)
    scale = np.maximum(np.abs(heads).max(-1, keepdims=True) / np.float32(127), np.float32(2.0**-100))
    return (np.round(heads / scale) * scale).reshape(values.shape)


@given_steps
@given(shape=shapes(), lens=lens, seed=seeds, data=st.data())
def test_a_sequence_alone_has_the_same_bits_as_in_a_batch(
    kernel_library: Path,
    instruction_set: str,
    shape: AttentionShape,
    lens: list[tuple[int, int]],
    seed: int,
    data: st.DataObject,
) -> None:
    step = random_step(shape, lens, seed)
    session = open_node(shape, kernel_library)
    together = step.run(session)["output"]
    sequence = data.draw(st.integers(0, len(lens) - 1))
    alone = step.part([sequence]).run(session)["output"]
    np.testing.assert_array_equal(alone, together[step.rows(sequence)])


@given_steps
@given(
    shape=shapes(),
    context=st.integers(0, 1200),
    queries=st.integers(1, 90),
    seed=seeds,
    cuts=st.sets(st.integers(1, 89)),
)
def test_chunks_have_the_same_bits_as_the_whole(
    kernel_library: Path,
    instruction_set: str,
    shape: AttentionShape,
    context: int,
    queries: int,
    seed: int,
    cuts: set[int],
) -> None:
    step = random_step(shape, [(context, queries)], seed)
    session = open_node(shape, kernel_library)
    whole = step.run(session)
    bounds = [0, *sorted(cut for cut in cuts if cut < queries), queries]
    for first, end in pairwise(bounds):
        part = step.part([0], first, end - first)
        pools = [name for name in POOLS if name in step.inputs]
        part.inputs.update({name: step.inputs[name] for name in pools})
        found = part.run(session)
        np.testing.assert_array_equal(found["output"], whole["output"][first:end])
        step.inputs.update({name: found[f"{name}_out"] for name in pools})
    for name in pools:
        np.testing.assert_array_equal(found[f"{name}_out"], whole[f"{name}_out"])


@every_dtype
@pytest.mark.parametrize("lens", [[(2500, 1)], [(900, 1)] * 5, MIXED, [(199, 1)] * 70, [(0, 512)], [(1800, 40)]])
def test_threads_do_not_change_a_bit(
    kernel_library: Path, instruction_set: str, lens: list[tuple[int, int]], kv_dtype: KVDType
) -> None:
    shape = replace(QWEN, kv_dtype=kv_dtype)
    step = random_step(shape, lens)
    one, two, four = (open_node(shape, kernel_library, num_threads=n) for n in (1, 2, 4))
    expected = step.run(one)
    for _ in range(3):
        for session in (two, four):
            for name, array in step.run(session).items():
                np.testing.assert_array_equal(array, expected[name])


@every_dtype
def test_a_first_token_that_draws_most_of_the_weight_leaves_the_others_theirs(
    kernel_library: Path, instruction_set: str, kv_dtype: KVDType
) -> None:
    """Trained models do that, with a small value for it. Were weights rounded to 8 bits, the others would become 0."""
    shape = replace(QWEN, kv_dtype=kv_dtype)
    step = random_step(shape, [(0, 120)])
    step.inputs["cos"][:], step.inputs["sin"][:] = 1, 0
    for name, feature in (("query", 8.0), ("key", 7.5)):
        heads = step.inputs[name].reshape(120, -1, 64)
        heads *= 0.2
        heads[slice(None) if name == "query" else 0, :, 0] = feature
    step.inputs["value"][0] = 0.0
    found = step.run(open_node(shape, kernel_library))
    allowed = [output[100:] for output, _ in allowed_outputs(step, found, instruction_set)]
    largest = np.abs(allowed[0]).max()
    assert largest < 0.1  # of values up to 4: the first token has most of the weight
    assert min(np.abs(found["output"][100:] - output).max() for output in allowed) < 0.15 * largest


@every_dtype
def test_a_query_that_is_not_a_number_stays_alone(
    kernel_library: Path, instruction_set: str, kv_dtype: KVDType
) -> None:
    shape = replace(QWEN, kv_dtype=kv_dtype)
    step = random_step(shape, [(300, 10), (40, 1)])
    session = open_node(shape, kernel_library)
    expected = step.run(session)["output"]
    step.inputs["query"][3] = np.nan
    found = step.run(session)["output"]
    assert np.isnan(found[3]).all()
    others = np.arange(len(found)) != 3
    np.testing.assert_array_equal(found[others], expected[others])


@every_dtype
def test_a_later_token_that_is_not_a_number_does_not_reach_earlier_ones(
    kernel_library: Path, instruction_set: str, kv_dtype: KVDType
) -> None:
    shape = replace(QWEN, kv_dtype=kv_dtype)
    step = random_step(shape, [(30, 40)])
    session = open_node(shape, kernel_library)
    expected = step.run(session)["output"]
    for name in ("key", "value"):
        step.inputs[name][25, ::7] = np.nan
    found = step.run(session)["output"]
    np.testing.assert_array_equal(found[:25], expected[:25])
    assert np.isnan(found[25:]).all()


@every_dtype
def test_pools_that_are_not_shared_are_copied_first(kernel_library: Path, kv_dtype: KVDType) -> None:
    shape = replace(QWEN, kv_dtype=kv_dtype)
    step = random_step(shape, MIXED)
    session = open_node(shape, kernel_library)
    shared, copied = step.run(session), step.run(session, in_place=False)
    for name, array in shared.items():
        np.testing.assert_array_equal(copied[name], array)


@pytest.mark.parametrize(
    ("name", "place", "value", "said"),
    [
        ("block_tables", (0, 0), 10_000, "a block is 10000"),
        ("block_tables", (0, 0), -1, "a block is -1"),
        ("slot_mapping", 0, 1_000_000, "a slot is 1000000"),
        ("positions", 0, 1_000_000, "a position is 1000000"),
        ("context_lens", 0, 100_000, "number of blocks is 3126"),
        ("query_start", 1, 3, "query_start is 3"),
    ],
)
@every_dtype
def test_an_index_outside_its_array_is_refused(
    kernel_library: Path, name: str, place: int | tuple[int, int], value: int, said: str, kv_dtype: KVDType
) -> None:
    shape = replace(QWEN, kv_dtype=kv_dtype)
    step = random_step(shape, [(10, 2)])
    step.inputs[name][place] = value
    with pytest.raises(RuntimeError, match=f"{OP_TYPES[kv_dtype]}: .*{said}"):
        step.run(open_node(shape, kernel_library))


def test_a_step_without_tokens_is_nothing_to_do(kernel_library: Path) -> None:
    step = random_step(QWEN, [(10, 0)])
    assert step.run(open_node(QWEN, kernel_library))["output"].shape == (0, 14 * 64)


@every_dtype
def test_the_driver_runs_the_kernel_and_not_the_body(kernel_library: Path, kv_dtype: KVDType) -> None:
    """Else these tests would compare the stock body with itself: it cannot take stale NaN, the kernel can."""
    shape = replace(QWEN, kv_dtype=kv_dtype)
    step: Step = random_step(shape, [(10, 1), (40, 1)])
    session: onnxruntime.InferenceSession = open_node(shape, None)
    assert np.isnan(step.run(session)["output"]).any()
    assert not np.isnan(step.run(open_node(shape, kernel_library))["output"]).any()
