"""Positions: ALiBi and sine-cosine tables against the official ones; what a token's place is after hiding."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from golden_case import GOLDEN

from d2v_lightning import Alibi, RelativePositionBias
from d2v_lightning.nn.position import relative_position_index, sine_cosine_positions

TABLES = json.loads((GOLDEN / "positional_tables.json").read_text())


@pytest.mark.parametrize("name", TABLES["alibi"])
def test_alibi_slopes_are_the_official_ones(name: str) -> None:
    official = TABLES["alibi"][name]
    (bias,) = Alibi(int(name.removeprefix("heads ")))(6)
    slopes = torch.tensor(official["slopes_as_bias_at_distance_1"])
    torch.testing.assert_close(bias[0, :, 0, 1], -slopes)
    torch.testing.assert_close(bias[0, 0, 0], torch.tensor(official["bias_head0_row0"]))
    torch.testing.assert_close(bias, bias.transpose(2, 3))


def test_alibi_of_visible_tokens_is_the_whole_bias_at_their_places() -> None:
    alibi = Alibi(4, num_scales=2)
    with torch.no_grad():
        alibi.scale.copy_(torch.tensor([[0.5, 1.0, 2.0, -1.0], [1.0, 1.0, 1.0, 1.0]]))
    positions = torch.tensor([[0, 3, 4], [1, 2, 8]])
    for whole, part in zip(alibi(9), alibi(4, positions), strict=True):
        assert part.shape == (2, 4, 4, 4)
        for row, places in enumerate(positions):
            torch.testing.assert_close(part[row, :, 1:, 1:], whole[0][:, places][:, :, places])
        assert not part[:, :, 0].any(), "an extra token stands nowhere"
        assert not part[:, :, :, 0].any()
    assert not alibi(9)[0][0, 3].any(), "a negative scale counts as 0"


def test_sine_cosine_positions_are_the_official_ones() -> None:
    official = TABLES["sincos_2d"]
    positions = sine_cosine_positions((official["grid"], official["grid"]), official["embed_dim"])
    torch.testing.assert_close(positions[0], torch.tensor(official["values"]))
    with pytest.raises(ValueError, match="dim is 10"):
        sine_cosine_positions((2, 2), 10)


def test_a_learned_table_refuses_tokens_that_were_left_out() -> None:
    with pytest.raises(ValueError, match="needs Alibi or position embeddings"):
        RelativePositionBias((2, 2), 2)(3, torch.tensor([[0, 1]]))


@pytest.mark.parametrize(
    ("side", "updates", "decay", "share"),
    [
        (14, 2, lambda n: 0.9998, 0.0),  # 1.0 Base (README of data2vec_vision: --ema_decay 0.9998 --ema_start_at 0)
        (14, 2, lambda n: 0.9999, 0.19),  # Large, second half
        (14, 3000, lambda n: 0.999 + 0.0008 * n / 25_000, 0.99),  # defaults of run_cyclical.py
        (8, 1410, lambda n: 0.99 + 0.009 * n / 1410, 0.98),  # RESULTS.md, "Does a run learn"
    ],
)
def test_an_average_of_integers_leaves_the_index_or_lowers_it(
    side: int, updates: int, decay: Callable[[int], float], share: float
) -> None:
    """What the official `_update` (engine_for_cyclical.py) makes of the table; at a constant decay it settles at once."""
    index, counts = relative_position_index((side, side)).unique(return_counts=True)
    table = index.clone()
    for n in range(updates):
        table.copy_(decay(n) * table + (1.0 - decay(n)) * index)
    lowered = int(((table == index - 1) * counts).sum()) / int(counts.sum())
    assert ((table == index) | (table == index - 1)).all()
    assert round(lowered, 2) == share
