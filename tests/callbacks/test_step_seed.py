"""StepSeed: random numbers are a function of seed, epoch, micro-batch and rank, and of nothing that came before."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from d2v_lightning.callbacks import StepSeed
from d2v_lightning.support.errors import UserError


def trainer(epoch: int = 0, rank: int = 0) -> Any:
    strategy = SimpleNamespace(broadcast=lambda seed: seed)
    return SimpleNamespace(current_epoch=epoch, global_rank=rank, strategy=strategy)


def draws(callback: StepSeed, batch: int = 0, **place: int) -> tuple[float, float, float]:
    torch.rand(3)
    callback.on_train_batch_start(trainer(**place), None, None, batch)  # type: ignore[arg-type]
    return float(torch.rand(())), float(np.random.rand()), random.random()


def begun(seed: int) -> StepSeed:
    torch.manual_seed(seed)
    callback = StepSeed()
    callback.on_fit_start(trainer(), None)  # type: ignore[arg-type]
    return callback


def test_every_place_has_numbers_of_its_own_that_come_again() -> None:
    callback = begun(5)
    places: list[dict[str, int]] = [{}, {"batch": 1}, {"batch": 2}, {"epoch": 1}, {"rank": 1}, {"epoch": 1, "rank": 1}]
    found = [draws(callback, **place) for place in places]
    for column in zip(*found, strict=True):
        assert len(set(column)) == len(places)
    assert [draws(callback, **place) for place in reversed(places)] == found[::-1]
    assert draws(begun(5)) == found[0]
    assert draws(begun(6)) != found[0]


def test_a_resumed_run_has_the_seed_of_its_checkpoint() -> None:
    whole, resumed = begun(5), StepSeed()
    resumed.load_state_dict(whole.state_dict())
    torch.manual_seed(77)
    resumed.on_fit_start(trainer(), None)  # type: ignore[arg-type]
    assert draws(resumed) == draws(whole)


@pytest.mark.parametrize("seed", ["5", -1, 0.5])
def test_a_seed_that_is_no_whole_number_is_refused(seed: Any) -> None:
    with pytest.raises(UserError, match="the checkpoint's state of StepSeed has the seed"):
        StepSeed().load_state_dict({"seed": seed})
