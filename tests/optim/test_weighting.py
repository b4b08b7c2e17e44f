"""WeighsMicroBatches: micro-batches that hold different numbers of things give the gradient of one big batch."""

from __future__ import annotations

import pytest
import torch
from tiny import image_batches, trained


@pytest.mark.parametrize("counts", [[9, 9, 9, 9], [3, 12, 9, 5]], ids=["equal", "unequal"])
def test_accumulating_four_batches_of_two_equals_one_batch_of_eight(counts: list[int]) -> None:
    small = image_batches(counts * 2)
    large = [
        {key: torch.cat([row[key] for row in small[start : start + 4]]) for key in ("inputs", "mask")}
        for start in (0, 4)
    ]
    accumulated, whole = trained(small, 4), trained(large, 1)
    for ours, expected in zip(accumulated.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, atol=2e-6, rtol=1e-4)


def test_a_last_incomplete_accumulation_window_has_the_full_gradient() -> None:
    rows = image_batches([9, 9, 9])
    whole = [
        {key: torch.cat([row[key] for row in part]) for key in ("inputs", "mask")} for part in (rows[:2], rows[2:])
    ]
    for ours, expected in zip(trained(rows, 2).parameters(), trained(whole, 1).parameters(), strict=True):
        torch.testing.assert_close(ours, expected, atol=2e-6, rtol=1e-4)
