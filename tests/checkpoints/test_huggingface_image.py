"""The image layout of transformers: what belongs to a head, what follows from the grid, and tables as they are applied."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import tiny_backbone
from transformers import Data2VecVisionConfig

from d2v_lightning import RelativePositionBias
from d2v_lightning.checkpoints.huggingface_image import _table_in_use, adjust, config, follows, is_head, untrained
from d2v_lightning.nn.position import relative_position_index
from d2v_lightning.support.errors import UserError


def test_a_configuration_describes_the_network_that_describes_it() -> None:
    backbone = tiny_backbone(dropout=0.25, drop_path=0.5)
    again = untrained(config(backbone), "there")
    assert again.encoder.config == backbone.encoder.config
    assert again.transformer.config == backbone.transformer.config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "post"}, "norm is 'post'"),
        ({"layer_drop": 0.1}, "layer_drop is 0.1"),
        ({"layer_scale": -1.0}, "LayerScale"),
    ],
)
def test_a_network_that_theirs_cannot_be_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"transformers has no such network: .*{message}"):
        config(tiny_backbone(**change))


def test_the_final_norm_is_a_heads_where_patches_are_averaged() -> None:
    averaged, first = SimpleNamespace(use_mean_pooling=True), SimpleNamespace(use_mean_pooling=False)
    assert is_head("classifier.weight", False, averaged)
    assert is_head("pooler.layernorm.weight", True, averaged)
    assert not is_head("encoder.layer.0.layernorm_before.weight", True, averaged)
    assert not is_head("layernorm.weight", True, first)


def test_an_index_of_positions_is_that_of_the_grid_or_is_not() -> None:
    made = Data2VecVisionConfig(image_size=20, patch_size=4)
    assert follows("relative_position_index", relative_position_index((5, 5)), made)
    assert not follows("relative_position_index", relative_position_index((5, 5)).T, made)
    assert not follows("relative_position_index", relative_position_index((4, 5)), made)


def test_the_table_of_an_only_block_becomes_the_shared_one() -> None:
    backbone = tiny_backbone(depth=1, position_bias=RelativePositionBias((4, 4), 3))
    table = torch.randn(7 * 7 + 3, 3)
    key = "attention.attention.relative_position_bias.relative_position_bias_table"
    found = adjust({f"encoder.layer.0.{key}": table}, backbone)
    assert [name for name, tensor in found.items() if tensor is table] == [
        "encoder.relative_position_bias.relative_position_bias_table"
    ]


def test_only_the_table_of_a_grid_that_is_not_square_is_applied_in_another_way() -> None:
    square = torch.randn(7 * 7 + 3, 2)
    assert _table_in_use(square, (4, 4)) is square
    table = torch.randn(3 * 7 + 3, 2)
    used = _table_in_use(table, (2, 4))
    assert used.shape == table.shape
    assert torch.equal(used[-3:], table[-3:])
    assert not torch.allclose(used, table)
    same = _table_in_use(torch.ones(3 * 7 + 3, 2), (2, 4))
    torch.testing.assert_close(same, torch.ones_like(same))
