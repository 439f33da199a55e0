"""assert_same_tokens: what it lets pass, what it does not, and that it cannot pass for nothing."""

import numpy as np
import numpy.typing as npt
import pytest

from nanovllm.testing import assert_same_tokens

PROMPT = [1, 2, 3]


def logits_for(*rows: tuple[float, ...]) -> npt.NDArray[np.float32]:
    return np.array(rows, np.float32)


CLEAR = logits_for((0, 5, 0), (5, 0, 0), (0, 0, 5), (0, 5, 0))
TIED_AT_1 = logits_for((0, 5, 0), (5, 5.0005, 0), (0, 0, 5), (0, 5, 0))


def test_equal_tokens_pass_and_all_are_counted() -> None:
    report = assert_same_tokens(CLEAR, PROMPT, [1, 0, 2, 1])
    assert (report.num_tokens, report.num_compared, report.max_difference) == (4, 4, None)


def test_another_token_fails_with_its_place_and_gap() -> None:
    with pytest.raises(AssertionError, match="token 2 of 4 is 0; the reference's is 2, which it puts 5 higher"):
        assert_same_tokens(CLEAR, PROMPT, [1, 0, 0, 1])


def test_a_reference_function_is_asked_for_prompt_and_tokens() -> None:
    asked: list[list[int]] = []

    def reference(token_ids: object) -> npt.NDArray[np.float32]:
        asked.append(list(token_ids))
        return np.concatenate([np.zeros((2, 3), np.float32), CLEAR, np.zeros((1, 3), np.float32)])

    assert_same_tokens(reference, PROMPT, [1, 0, 2, 1])
    assert asked == [[1, 2, 3, 1, 0, 2, 1]]


def test_after_a_near_tie_that_parts_them_tokens_are_not_compared() -> None:
    report = assert_same_tokens(TIED_AT_1, PROMPT, [1, 0, 0, 0], min_share=0.25)
    assert report.num_compared == 1


def test_a_near_tie_that_does_not_part_them_ends_nothing() -> None:
    assert assert_same_tokens(TIED_AT_1, PROMPT, [1, 1, 2, 1]).num_compared == 4
    with pytest.raises(AssertionError, match="token 2"):
        assert_same_tokens(TIED_AT_1, PROMPT, [1, 1, 0, 1])


def test_a_token_outside_the_near_tie_fails_there_too() -> None:
    with pytest.raises(AssertionError, match="token 1"):
        assert_same_tokens(TIED_AT_1, PROMPT, [1, 2, 2, 1])


def test_too_small_a_share_fails() -> None:
    with pytest.raises(AssertionError, match="only 1 of 4 tokens"):
        assert_same_tokens(TIED_AT_1, PROMPT, [1, 0, 0, 0], min_share=0.5)


def test_logits_are_compared_at_every_position_even_after_a_near_tie() -> None:
    mine = TIED_AT_1.copy()
    assert assert_same_tokens(TIED_AT_1, PROMPT, [1, 0, 0, 0], logits=mine, min_share=0.25).max_difference == 0
    mine[3, 2] += 0.1
    with pytest.raises(AssertionError, match="position 3, token 2"):
        assert_same_tokens(TIED_AT_1, PROMPT, [1, 0, 0, 0], logits=mine, min_share=0.25)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_never_passes(bad: float) -> None:
    broken = CLEAR.copy()
    broken[1, 1] = bad
    with pytest.raises(AssertionError, match="not finite"):
        assert_same_tokens(broken, PROMPT, [1, 0, 2, 1])
    with pytest.raises(AssertionError, match="differ"):
        assert_same_tokens(CLEAR, PROMPT, [1, 0, 2, 1], logits=broken)


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to compare"):
        assert_same_tokens(CLEAR, PROMPT, [])
    with pytest.raises(ValueError, match="nothing to compare"):
        assert_same_tokens(CLEAR, [], [1])
    with pytest.raises(ValueError, match="shape"):
        assert_same_tokens(CLEAR[:2], PROMPT, [1, 0, 2, 1])
    with pytest.raises(ValueError, match="shape"):
        assert_same_tokens(CLEAR, PROMPT, [1, 0, 2, 1], logits=CLEAR[:2])
