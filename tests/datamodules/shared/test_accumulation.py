"""The published batch on any number of devices: reached by accumulation, or the nearest one is said, or none is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from datamodules.shared.accumulation import accumulate_to


def accumulated(world_size: int, per_device: int, effective_batch: int) -> int:
    trainer: Any = SimpleNamespace(world_size=world_size, accumulate_grad_batches=1)
    accumulate_to(trainer, "batch_size", per_device, effective_batch, "clips")
    return trainer.accumulate_grad_batches


@pytest.mark.parametrize(("world_size", "per_device", "expected"), [(1, 8, 8), (4, 8, 2), (8, 8, 1), (2, 32, 1)])
def test_a_step_sees_the_whole_batch_on_any_number_of_devices(world_size: int, per_device: int, expected: int) -> None:
    assert accumulated(world_size, per_device, 64) == expected


def test_a_batch_out_of_reach_is_said_and_one_that_is_too_large_is_refused() -> None:
    with pytest.warns(
        UserWarning, match=r"batch_size 5 x 2 device\(s\) = 10 clips: using 60 \(6 accumulated batches\)"
    ):
        assert accumulated(2, 5, 64) == 6
    with pytest.raises(ValueError, match="= 66 clips is more than effective_batch 64: set batch_size to at most 32"):
        accumulated(2, 33, 64)
    accumulate_to(None, "batch_size", 33, 64, "clips")  # nothing to set
