"""The benchmark's workloads: what they are, and that they are the same everywhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanovllm import NanoVLLMError
from nanovllm.bench import WORKLOAD_NAMES, named_workload, uniform_workload

SIZES = {  # requests, prompt tokens, new tokens
    "offline-48": (48, 6528, 3966),
    "single": (1, 128, 256),
    "prefill": (8, 8 * 1024, 8),
    "long": (16, 16 * 2000, 16 * 128),
    "shared-prefix": (64, 64 * 1032, 64 * 32),
}


@pytest.mark.parametrize("name", WORKLOAD_NAMES)
def test_a_workload_has_the_size_that_its_results_are_known_by(name: str) -> None:
    workload = named_workload(name, 151936)
    assert (len(workload.prompts), workload.num_prompt_tokens, workload.num_output_tokens) == SIZES[name]
    assert len(workload.output_lens) == len(workload.prompts)


def test_the_lengths_of_offline_48_are_spread_as_stated() -> None:
    workload = named_workload("offline-48", 151936)
    assert all(32 <= len(prompt) <= 256 for prompt in workload.prompts)
    assert all(32 <= length <= 128 for length in workload.output_lens)
    assert len({len(prompt) for prompt in workload.prompts}) > 30


def test_token_ids_are_the_same_on_every_machine() -> None:
    assert named_workload("single", 151936).prompts[0][:4] == [132221, 64375, 19718, 126822]
    assert uniform_workload(1, 4, 1, 1000).prompts == [[260, 395, 844, 55]]


@given(st.sampled_from(WORKLOAD_NAMES), st.integers(1, 200_000), st.integers(0, 9), st.integers(0, 9))
def test_rounds_and_seeds_change_the_token_ids_and_nothing_else(name: str, vocab_size: int, a: int, b: int) -> None:
    one = named_workload(name, vocab_size, round_index=a)
    other = named_workload(name, vocab_size, round_index=b)
    seeded = named_workload(name, vocab_size, seed=1, round_index=a)
    assert all(0 <= token_id < vocab_size for prompt in one.prompts for token_id in prompt)
    for changed, expected in ((other, a == b), (seeded, False)):
        assert list(map(len, changed.prompts)) == list(map(len, one.prompts))
        assert changed.output_lens == one.output_lens
        if vocab_size > 1000:
            assert (changed.prompts == one.prompts) is expected


def test_a_shared_prefix_is_shared_and_the_rest_is_not() -> None:
    prompts = named_workload("shared-prefix", 151936).prompts
    assert {tuple(prompt[:1000]) for prompt in prompts} == {tuple(prompts[0][:1000])}
    assert len({tuple(prompt[1000:]) for prompt in prompts}) == 64


def test_prompts_are_what_counts_where_nothing_else_is_computed() -> None:
    assert named_workload("prefill", 1000).counted == "prompt"
    assert {named_workload(name, 1000).counted for name in WORKLOAD_NAMES if name != "prefill"} == {"output"}


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, 0, 1), (1, 1, -1)])
def test_sizes_below_one_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(NanoVLLMError, match="at least 1"):
        uniform_workload(*sizes, 1000)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(NanoVLLMError, match=r"'offline-84'.*offline-48"):
        named_workload("offline-84", 1000)
