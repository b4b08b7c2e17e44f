"""Tables of positions in files of 2.0: the grid is the one whose sines and cosines they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from golden_case import GoldenCase

from d2v_lightning.checkpoints.pretrained import FromPretrained
from d2v_lightning.nn.position import sine_cosine_positions
from d2v_lightning.support.errors import UserError


def with_table(tmp_path: Path, change: Any) -> Path:
    """A file of images whose every table of positions is changed."""
    path = GoldenCase("d2v2_image").write_official_file(tmp_path)
    file = torch.load(path, weights_only=False)
    for weights in (file["model"], file["model"]["_ema"]):
        for name in [name for name in weights if name.endswith("fixed_positional_encoder.positions")]:
            weights[name] = change(weights[name])
    torch.save(file, path)
    return path


def test_the_grid_is_read_off_the_table(tmp_path: Path) -> None:
    square = FromPretrained.from_pretrained(with_table(tmp_path, lambda table: table)).encoder.grid
    assert square[0] == square[1]
    rectangle = (2, 8)
    path = with_table(tmp_path, lambda table: sine_cosine_positions(rectangle, table.shape[2]).half())
    assert FromPretrained.from_pretrained(path).encoder.grid == rectangle


@pytest.mark.parametrize("kind", ["other numbers", "rows of no grid of ours", "turned"])
def test_a_table_that_is_not_ours_is_refused(kind: str, tmp_path: Path) -> None:
    changes = {
        "other numbers": torch.randn_like,
        "rows of no grid of ours": lambda table: torch.randn(1, 32, table.shape[2]),
        "turned": lambda table: table.flip(1),
    }
    with pytest.raises(UserError, match="not the sines and cosines of any grid") as error:
        FromPretrained.from_pretrained(with_table(tmp_path, changes[kind]))
    assert str(tmp_path) in str(error.value)
