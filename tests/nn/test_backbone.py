"""Backbone: features of every block, of any mode and padding, and parts that do not fit each other."""

from __future__ import annotations

import pytest
import torch
from tiny import image_batch, tiny_backbone, tiny_image_model
from torch import nn

from d2v_lightning import Backbone, ImageEncoder, RelativePositionBias, TextEncoder, Transformer
from d2v_lightning.nn.backbone import evaluating
from d2v_lightning.support.errors import UserError


def test_features_are_the_outputs_of_the_wanted_blocks_in_their_order() -> None:
    backbone = tiny_backbone().eval()
    seen: list[torch.Tensor] = []
    for block in backbone.transformer.blocks:
        block.register_forward_hook(lambda block, inputs, result: seen.append(result.block))
    images = image_batch(2, 9)["inputs"]
    found = backbone.features(images, layers=[-1, 0, -1])
    for layer, extra, whole in zip(found.layers, found.extra, [seen[2], seen[0], seen[2]], strict=True):
        assert torch.equal(torch.cat([extra, layer], dim=1), whole)
        assert extra.shape == (2, 1, 48)
    assert found.padding_mask is None
    assert found.lengths.tolist() == [16, 16]
    assert not found.layers[0].requires_grad
    torch.testing.assert_close(backbone(images), backbone.transformer.norm(seen[2]))
    assert len(backbone.features(images).layers) == 3


def test_lengths_are_of_what_is_not_padding_and_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    backbone = Backbone(TextEncoder(16, 40, 20, mask_id=39), Transformer(16, 2, 2, layer_scale=None))
    ids = torch.randint(3, 38, (2, 6))
    mask = torch.arange(6) >= torch.tensor([[4], [6]])
    found = backbone.features(ids, mask)
    assert found.lengths.tolist() == [4, 6]
    assert found.padding_mask is not None
    assert torch.equal(found.padding_mask, mask)
    assert found.extra[0].shape == (2, 0, 16)
    alone = backbone.features(ids[:1, :4]).layers[-1]
    torch.testing.assert_close(found.layers[-1][:1, :4], alone, atol=1e-5, rtol=1e-5)


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match=r"layers \[0, 3\] asked for, the trunk has blocks 0 to 2"):
        tiny_backbone().features(image_batch(1, 9)["inputs"], layers=[0, 3])
    with pytest.raises(UserError, match=r"encoder\.dim is 16, transformer\.dim is 32: make them equal"):
        Backbone(ImageEncoder(16, 4, dim=16), Transformer(dim=32, depth=1, num_heads=2))
    bias = RelativePositionBias((2, 2), 2)
    with pytest.raises(UserError, match=r"position_bias\.grid is \(2, 2\), but the encoder makes \(4, 4\) patches"):
        Backbone(ImageEncoder(16, 4, dim=16), Transformer(16, 1, 2, position_bias=bias))
    with pytest.raises(UserError, match=r"position_bias\.grid is \(2, 2\), but the encoder makes no grid of patches"):
        Backbone(TextEncoder(16, 40, 20, mask_id=39), Transformer(16, 1, 2, position_bias=bias))


def test_every_part_returns_to_the_mode_it_was_in() -> None:
    network = nn.Sequential(nn.Dropout(), nn.Dropout(), nn.Sequential(nn.Dropout())).train()
    network[1].eval()
    before = [part.training for part in network.modules()]
    modes = []
    with pytest.raises(KeyError), evaluating(network):  # noqa: PT012
        modes = [part.training for part in network.modules()]
        raise KeyError
    assert not any(modes)
    assert [part.training for part in network.modules()] == before == [True, True, False, True, True]


def test_features_are_deterministic_and_leave_the_mode_alone() -> None:
    model = tiny_image_model(drop_path=0.5, attention_dropout=0.5).train()
    inputs = image_batch(3, 9)["inputs"]
    first, second = (model.backbone.features(inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.layers, second.layers, strict=True))
    assert model.backbone.transformer.training
    assert not torch.equal(model.backbone(inputs), model.backbone(inputs))
