"""1.0 images: the grid and its index of positions are those of the weights, and targets are as the options say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from golden_case import changed

from d2v_lightning.checkpoints.pretrained import FromPretrained
from d2v_lightning.support.errors import UserError


def test_an_index_of_positions_of_another_grid_is_refused(tmp_path: Path) -> None:
    def turn(file: dict[str, Any]) -> dict[str, Any]:
        index = file["model"]["rel_pos_bias.relative_position_index"]
        file["model"]["rel_pos_bias.relative_position_index"] = index.T.contiguous()
        return file

    with pytest.raises(UserError, match=r"relative_position_index' is not that of \d+x\d+ patches"):
        FromPretrained.from_pretrained(changed("vision_shared_relpos", tmp_path, turn)[1])
