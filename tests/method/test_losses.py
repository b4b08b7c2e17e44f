"""RegressionLoss: its settings. What it computes is held by the golden cases."""

from __future__ import annotations

from typing import Any

import pytest

from d2v_lightning import RegressionLoss


def test_a_scale_that_is_no_number_is_refused_when_the_loss_is_made() -> None:
    wrong: Any = "rsqrt"
    with pytest.raises(ValueError, match="scale is 'rsqrt': give a number, or 'rsqrt_width'"):
        RegressionLoss(scale=wrong)
