"""Masks of a batch of pictures or of any sequence: the published shares, and a function of seed, epoch and sample."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader

from datamodules import BlockMaskCollator


def test_mask_collator_serves_a_plain_data_loader() -> None:
    pairs = [(torch.full((1, 8, 8), float(i)), i % 2) for i in range(6)]
    loader = DataLoader(pairs, batch_size=6, collate_fn=BlockMaskCollator((4, 4), num_masked=9))  # type: ignore[arg-type]

    def draw() -> dict[str, Any]:
        torch.manual_seed(3)
        return dict(next(iter(loader)))

    batch = draw()
    assert set(batch) == {"inputs", "labels", "mask", "hidden"}
    assert (batch["mask"].sum(-1) == 9).all()
    assert torch.equal(draw()["mask"], batch["mask"])
    assert not torch.equal(next(iter(loader))["mask"], batch["mask"])
