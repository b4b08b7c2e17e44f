"""1.0 images: the grid and its index of positions are those of the weights, and targets are as the options say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from golden_case import changed

from d2v_lightning.checkpoints.backbones import load_backbone
from d2v_lightning.checkpoints.pretrained import FromPretrained
from d2v_lightning.support.errors import UserError


def test_an_index_of_positions_of_another_grid_is_refused(tmp_path: Path) -> None:
    def turn(file: dict[str, Any]) -> dict[str, Any]:
        index = file["model"]["rel_pos_bias.relative_position_index"]
        file["model"]["rel_pos_bias.relative_position_index"] = index.T.contiguous()
        return file

    with pytest.raises(UserError, match=r"relative_position_index' is not that of \d+x\d+ patches"):
        FromPretrained.from_pretrained(changed("vision_shared_relpos", tmp_path, turn)[1])


@pytest.mark.parametrize(
    ("given", "averaged"),
    [("[1, 2]", 2), ([2, 1], 2), ([-1], 1), ("[0,2]", [0, 2]), ([5], None), ("none", None), ([], None)],
)
def test_blocks_to_average_are_a_list_or_the_text_of_one(given: Any, averaged: Any, tmp_path: Path) -> None:
    """Of three blocks: the last ones are a number, others a list, and such as are not there are refused."""

    def change(file: dict[str, Any]) -> dict[str, Any]:
        file["args"].target_layers = given
        return file

    path = changed("vision_shared_relpos", tmp_path, change)[1]
    if averaged is None:
        with pytest.raises(UserError, match="its option target_layers is"):
            FromPretrained.from_pretrained(path)
    else:
        targets = FromPretrained.from_pretrained(path).config["init_args"]["targets"]["init_args"]  # type: ignore[attr-defined]
        assert targets["average_top_k_layers"] == averaged


@pytest.mark.parametrize(("given", "mean"), [(True, 0.485), (False, 0.5), (None, 0.485), ("yes", None)])
def test_pictures_are_normalised_as_the_trainer_was_told(given: Any, mean: float | None, tmp_path: Path) -> None:
    """`--imagenet_default_mean_and_std` in `beit/datasets.py`; the released pre-training has it."""

    def change(file: dict[str, Any]) -> dict[str, Any]:
        if given is not None:
            file["args"].imagenet_default_mean_and_std = given
        return file

    path = changed("vision_shared_relpos", tmp_path, change)[1]
    if mean is None:
        with pytest.raises(
            UserError, match="imagenet_default_mean_and_std is 'yes', where one such as True is expected"
        ):
            FromPretrained.from_pretrained(path)
    else:
        assert load_backbone(path).encoder.normalization.mean[0] == mean  # type: ignore[union-attr]
