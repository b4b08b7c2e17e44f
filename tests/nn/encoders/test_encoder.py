"""Encoder: one of one's own needs a width, positions and `features`, and everything else works with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from d2v_lightning import (
    Backbone,
    Encoder,
    LinearDecoder,
    MaskTokenStudent,
    RegressionLoss,
    Targets,
    Transformer,
)
from d2v_lightning.configurable import build
from d2v_lightning.method.objective import Objective
from d2v_lightning.nn.encoders import Position


class Readings(Encoder):
    """A number for each token, of eight sensors."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.dim, self.position = dim, Position()
        self.proj = torch.nn.Linear(8, dim)

    def features(self, inputs: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return self.proj(inputs), padding_mask


def test_a_position_of_no_kind_adds_nothing_and_mixes_nothing() -> None:
    tokens = torch.randn(2, 3, 4)
    assert Position()(tokens, torch.zeros(2, 3, dtype=torch.bool)) is tokens
    assert (Position.num_extra_tokens, Position.mixes_tokens) == (0, False)


def test_an_encoder_without_features_says_what_it_needs() -> None:
    class Empty(Encoder):
        pass

    with pytest.raises(NotImplementedError, match=r"Empty must define features\(inputs, padding_mask\)"):
        Empty().features(torch.zeros(1))
    assert Empty().padding == "exact"


def test_an_encoder_of_ones_own_is_pretrained_and_built_again() -> None:
    torch.manual_seed(0)
    backbone = Backbone(Readings(), Transformer(16, 2, 2))
    objective = Objective(MaskTokenStudent(backbone, LinearDecoder(16)), Targets(2), RegressionLoss())
    batch: Any = {"inputs": torch.randn(2, 6, 8), "mask": torch.rand(2, 1, 6) < 0.5}
    loss, hidden = objective.regress(batch)
    loss.backward()
    assert hidden.tolist() == batch["mask"].flatten().nonzero().flatten().tolist()
    assert backbone.encoder.get_parameter("proj.weight").grad is not None
    again = build(objective.config)
    again.load_state_dict(objective.state_dict())
    assert isinstance(again.encoder, Readings)
    assert torch.equal(again.regress(batch)[0], loss)
