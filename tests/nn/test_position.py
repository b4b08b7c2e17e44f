"""Positions: ALiBi and sine-cosine tables against the official ones; what a token's place is after hiding."""

from __future__ import annotations

import json

import pytest
import torch
from golden_case import GOLDEN

from d2v_lightning import Alibi, RelativePositionBias
from d2v_lightning.nn.position import sine_cosine_positions

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
