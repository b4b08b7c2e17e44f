"""Batches within a budget of samples: every clip once, none alone without need, as many on every rank."""

from __future__ import annotations

import numpy as np
import pytest

from datamodules.shared import samplers as samplers_module
from datamodules.shared.budget_batches import BudgetBatchSampler


def test_every_batch_is_within_budget_and_an_epoch_covers_every_clip_once() -> None:
    lengths = np.random.default_rng(0).integers(16000, 320000, 500).tolist()
    sampler = BudgetBatchSampler(lengths, 1_000_000)
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        assert sorted(index for batch in batches for _, index in batch) == list(range(500))
        assert all(len(batch) * max(lengths[index] for _, index in batch) <= 1_000_000 for batch in batches)
    assert sampler.padding_ratio < 0.05
    orders = [[batch[0][1] for batch in (sampler.set_epoch(epoch), list(sampler))[1]] for epoch in (0, 1)]
    assert orders[0] != orders[1]
    with pytest.raises(ValueError, match=r"budget 100 is smaller than the longest clip"):
        BudgetBatchSampler(lengths, 100)


def test_no_clip_is_left_alone_where_two_fit() -> None:
    sampler = BudgetBatchSampler([100] * 9, 400)
    assert sorted(map(len, sampler.batches)) == [2, 3, 4]
    assert sorted(index for batch in sampler.batches for index in batch) == list(range(9))
    assert [len(batch) for batch in BudgetBatchSampler([10, 10, 10, 90], 100).batches] == [3, 1], "two do not fit"


def test_ranks_share_the_batches_equally(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = list(range(1000, 1100))
    for shuffle in (True, False):
        seen: list[int] = []
        counts = []
        for rank in range(3):
            monkeypatch.setattr(samplers_module, "world", lambda rank=rank: (rank, 3))
            monkeypatch.setattr("datamodules.shared.budget_batches.world", lambda rank=rank: (rank, 3))
            batches = list(BudgetBatchSampler(lengths, 7000, shuffle=shuffle))
            counts.append(len(batches))
            seen += [index for batch in batches for _, index in batch]
        assert len(set(counts)) == 1
        assert len(set(seen)) == (len(seen) if shuffle else 100)
