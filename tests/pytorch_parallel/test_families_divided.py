"""Every family gives on several ranks what it gives on one: ranks of one process, a thread each, sums by gloo."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from rank_driver import load_ranks, on_every_rank

from backends.pytorch.parallel.collective import Collective
from backends.pytorch.parallel.division import Rank
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
    ranks = load_ranks(folder, size, tmp_path / "ranks")
    logits = on_every_rank([partial(teacher_forced_logits, rank, TOKENS, block_size=8) for rank in ranks])
    np.testing.assert_allclose(logits[0], expected, atol=ATOL, rtol=0)
    assert [len(rows) for rows in logits[1:]] == [0] * (size - 1), "only rank 0 needs logits"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_all_ranks_get_the_same_sum_and_rank_0_all_parts(tmp_path: Path, dtype: torch.dtype) -> None:
    size, features = 3, 10
    ranks = [Rank(number, size) for number in range(size)]
    collectives = [Collective(rank, tmp_path / "ranks") for rank in ranks]
    on_every_rank([collective.join for collective in collectives])
    parts = [torch.randn(5, features, generator=torch.Generator().manual_seed(n)).to(dtype) for n in range(size)]
    expected = sum(part.float() for part in parts)
    sums = on_every_rank([partial(c.all_reduce, part.clone()) for c, part in zip(collectives, parts, strict=True)])
    assert all(torch.equal(result, sums[0]) for result in sums)
    torch.testing.assert_close(sums[0].float(), expected, atol=0.05, rtol=0.01)
    turned = torch.randn(features, 5).to(dtype).T  # not contiguous, as results of some products are
    shares = [turned[:, slice(*rank.share(features))] for rank in ranks]
    gathered = on_every_rank([partial(c.gather, share, features) for c, share in zip(collectives, shares, strict=True)])
    assert torch.equal(gathered[0], turned)
    assert [tuple(part.shape) for part in gathered[1:]] == [(0, features)] * 2
