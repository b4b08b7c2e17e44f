"""RegressionLoss: its settings, and by hand what they give. The golden cases hold it against Meta's code."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from d2v_lightning import RegressionLoss
from d2v_lightning.support.errors import UserError

PREDICTIONS = torch.tensor([[0.0, 0.5, 3.0, 0.0], [1.0, 0.0, 0.0, -5.0]])
TARGETS = torch.zeros(2, 4)


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        ({"beta": 0.0, "over_width": "sum"}, [9.25, 26.0]),
        ({"beta": 0.0, "over_width": "mean"}, [9.25 / 4, 26.0 / 4]),
        ({"beta": 0.0, "over_width": "sum", "scale": "rsqrt_width"}, [9.25 / 2, 26.0 / 2]),
        ({"beta": 0.0, "over_width": "sum", "scale": 0.1}, [0.925, 2.6]),
        # x * x / 2 / beta below beta, |x| - beta / 2 from there on
        ({"beta": 2.0, "over_width": "sum"}, [0.25 / 4 + 2.0, 0.25 + 4.0]),
        ({"beta": 4.0, "over_width": "sum"}, [0.25 / 8 + 9.0 / 8, 1.0 / 8 + 3.0]),
    ],
)
def test_the_loss_is_the_mean_of_the_losses_of_tokens(settings: dict[str, Any], tokens: list[float]) -> None:
    loss = RegressionLoss(**settings)
    torch.testing.assert_close(loss.one_by_one(PREDICTIONS, TARGETS), torch.tensor(tokens))
    torch.testing.assert_close(loss(PREDICTIONS, TARGETS), torch.tensor(sum(tokens) / 2))


def test_it_is_computed_in_float32_and_nothing_costs_nothing() -> None:
    loss, small = RegressionLoss(0.0, "sum"), torch.full((1, 1), 300.0, dtype=torch.float16)
    assert float(loss(small, -small)) == 360_000.0, "more than half precision holds"
    assert float(loss(PREDICTIONS[:0], TARGETS[:0])) == 0.0


def test_a_setting_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UserError, match="beta is -1: it must be 0"):
        RegressionLoss(beta=-1)
    with pytest.raises(UserError, match="over_width is 'max': choose 'mean' or 'sum'"):
        RegressionLoss(over_width="max")  # type: ignore[arg-type]


def test_a_scale_that_is_no_number_is_refused_when_the_loss_is_made() -> None:
    wrong: Any = "rsqrt"
    with pytest.raises(ValueError, match="scale is 'rsqrt': give a number, or 'rsqrt_width'"):
        RegressionLoss(scale=wrong)
