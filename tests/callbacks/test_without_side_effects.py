"""Aside: what is done there is in eval mode and without gradients, and leaves no trace in the training."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from tiny import trainer
from torch import nn

from d2v_lightning.callbacks.without_side_effects import without_side_effects
from d2v_lightning.flavour import pl


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.trained, self.frozen = nn.Linear(2, 2), nn.Dropout()
        self.frozen.eval()


def draws() -> tuple[float, float, float]:
    return float(torch.rand(())), float(np.random.rand()), random.random()


def seeded() -> tuple[float, float, float]:
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    return draws()


def test_random_states_and_modes_are_as_before_even_where_it_fails() -> None:
    module, runner = Module(), trainer([], 1)
    first, second = seeded(), draws()
    seeded()
    with without_side_effects(runner, module):
        assert not any(part.training for part in module.modules())
        assert not module.trained(torch.ones(1, 2)).requires_grad
        assert draws() == second, "they begin where training is"
    assert draws() == second
    assert seeded() == first
    with pytest.raises(KeyError), without_side_effects(runner, module):  # noqa: PT012
        draws()
        raise KeyError
    assert draws() == second
    assert (module.training, module.trained.training, module.frozen.training) == (True, True, False)
    assert torch.is_grad_enabled()


def test_it_computes_at_the_precision_of_the_run() -> None:
    module = Module()
    with without_side_effects(trainer([], 1, precision="bf16-mixed"), module):
        assert module.trained(torch.ones(1, 2)).dtype == torch.bfloat16
    assert module.trained(torch.ones(1, 2)).dtype == torch.float32
