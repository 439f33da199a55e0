"""Log-probabilities: torch's log_softmax, in order, with ranks, whatever stands in the other rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanovllm import SamplingParams
from nanovllm.batch import LogitsEdits, RowLogprobs
from nanovllm.logprobs import row_logprobs
from nanovllm.sampler import sample
from tests.sampling.plain import Float32Array, one_each, sampling_of


@st.composite
def logits_rows(choose: st.DrawFn) -> Float32Array:
    """Rows with ties, and with tokens that are impossible."""
    randomness = np.random.default_rng(choose(st.integers(0, 2**32)))
    shape = choose(st.integers(1, 6)), choose(st.integers(1, 60) | st.integers(200, 2000))
    logits = randomness.normal(0, choose(st.sampled_from([0.01, 3.0, 1000.0])), shape)
    step = choose(st.sampled_from([0.0, 1.0]))
    if step:
        logits = np.round(logits)
    logits[randomness.random(shape) < choose(st.sampled_from([0.0, 0.3]))] = -np.inf
    logits[:, 0] = 1.0
    return logits.astype(np.float32)


@given(logits_rows(), st.data())
@settings(max_examples=300)
def test_they_are_torch_s_log_softmax_in_order_of_likelihood(logits: Float32Array, data: st.DataObject) -> None:
    num_rows, vocab_size = logits.shape
    own = np.array([data.draw(st.integers(0, vocab_size - 1)) for _ in range(num_rows)])
    counts = np.array([data.draw(st.integers(-1, min(vocab_size + 3, 80))) for _ in range(num_rows)], np.int32)
    expected = torch.from_numpy(logits).double().log_softmax(-1).float().numpy()
    for i, row in enumerate(row_logprobs(logits, own, counts)):
        if counts[i] < 0:
            assert row is None
            continue
        assert row is not None
        order = np.argsort(-logits[i], kind="stable")
        assert row.token_ids.tolist() == [own[i], *order[: counts[i]]]
        assert (row.token_ids.dtype, row.logprobs.dtype) == (np.int64, np.float32)
        np.testing.assert_allclose(row.logprobs, expected[i][row.token_ids], rtol=1e-6, atol=1e-7)
        assert order[row.rank - 1] == own[i]
        assert isinstance(row.rank, int)


def test_a_row_s_are_the_same_bits_alone_and_beside_others() -> None:
    logits = np.random.default_rng(7).normal(0, 3, (5, 5000)).astype(np.float32)
    own, counts = np.arange(5), np.full(5, 20, np.int32)
    for i, row in enumerate(row_logprobs(logits, own, counts)):
        (alone,) = row_logprobs(logits[i : i + 1], own[i : i + 1], counts[i : i + 1])
        assert row is not None
        assert alone is not None
        assert row.rank == alone.rank
        assert np.array_equal(row.token_ids, alone.token_ids)
        assert np.array_equal(row.logprobs, alone.logprobs)


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_they_are_of_the_model_s_logits_and_the_sampled_token_s_comes_first(temperature: float) -> None:
    logits = np.random.default_rng(3).normal(0, 2, (1, 50)).astype(np.float32)
    edits = LogitsEdits(banned=logits.argmax(axis=1), bias_ids=np.array([17]), bias=np.array([30], np.float32))
    sampling = sampling_of(
        SamplingParams(temperature=temperature, top_k=3), edits={0: edits}, num_logprobs=np.array([50], np.int32)
    )
    output = sample(logits, sampling, one_each(1))
    assert output.token_ids == [[17]]
    assert output.logprobs is not None
    (row,) = output.logprobs
    assert isinstance(row, RowLogprobs)
    expected = torch.from_numpy(logits).double().log_softmax(-1)[0].numpy()
    assert row.token_ids[0] == 17
    assert row.rank == 1 + (expected > expected[17]).sum()
    np.testing.assert_allclose(row.logprobs, expected[row.token_ids], rtol=1e-6, atol=1e-7)
    assert np.exp(row.logprobs[1:].astype(np.float64)).sum() == pytest.approx(1)
