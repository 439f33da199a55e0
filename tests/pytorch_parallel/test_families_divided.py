"""Every family gives on several ranks what it gives on one. The ranks are threads of one process here."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from rank_driver import join_ranks, load_ranks, on_every_rank

from nanovllm.testing import ReferenceModel, teacher_forced_logits, tiny_config, write_checkpoint
from tests.architectures.family_configs import CASES, Case

ATOL = 1e-4
TOKENS = np.random.default_rng(5).integers(0, 97, 50).tolist()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_two_ranks_give_the_oracles_logits(tmp_path: Path, case: Case) -> None:
    check(tmp_path, case.config, 2)


@pytest.mark.parametrize(
    ("size", "changes"),
    [
        (3, {"num_key_value_heads": 3, "intermediate_size": 80, "vocab_size": 211}),  # parts of unequal size
        (3, {"num_key_value_heads": 6, "tie_word_embeddings": False}),
        (4, {"num_attention_heads": 8, "num_key_value_heads": 2}),  # two ranks for a KV head
        (4, {"num_attention_heads": 4, "num_key_value_heads": 1}),
        (6, {"num_key_value_heads": 1, "hidden_size": 32}),
    ],
)
def test_more_ranks_and_uneven_parts(tmp_path: Path, size: int, changes: dict[str, object]) -> None:
    check(tmp_path, tiny_config(**changes), size)


def check(tmp_path: Path, config: dict[str, object], size: int) -> None:
    folder = write_checkpoint(tmp_path / "model", config, dtype="float32")
    expected = ReferenceModel(folder).logits(TOKENS)
    assert np.ptp(expected) > 1, "such flat logits would agree with anything"
    ranks = load_ranks(folder, join_ranks("shared_memory", size, tmp_path))
    logits = on_every_rank([partial(teacher_forced_logits, rank, TOKENS, block_size=8) for rank in ranks])
    np.testing.assert_allclose(logits[0], expected, atol=ATOL, rtol=0)
    assert [len(rows) for rows in logits[1:]] == [0] * (size - 1), "only rank 0 needs logits"


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"dtype": "bfloat16"}, 0.06),
        ({"dtype": "float16"}, 0.01),
        ({"quantization": "int8"}, 0.15),
        ({"quantization": "int4"}, 0.6),
    ],
)
def test_in_smaller_formats_it_stays_near_the_oracle(
    tmp_path: Path, options: dict[str, object], tolerance: float
) -> None:
    folder = write_checkpoint(tmp_path / "model", tiny_config(hidden_size=64, intermediate_size=128))
    expected = ReferenceModel(folder).logits(TOKENS)
    ranks = load_ranks(folder, join_ranks("shared_memory", 2, tmp_path), **options)
    logits = on_every_rank([partial(teacher_forced_logits, rank, TOKENS) for rank in ranks])
    error = np.abs(logits[0] - expected).max() / np.abs(expected).max()
    assert 1e-6 < error < tolerance
