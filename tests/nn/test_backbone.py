"""Backbone: features of every block, of any mode and padding, and parts that do not fit each other."""

from __future__ import annotations

import torch
from tiny import image_batch, tiny_image_model


def test_features_are_deterministic_and_leave_the_mode_alone() -> None:
    model = tiny_image_model(drop_path=0.5, attention_dropout=0.5).train()
    inputs = image_batch(3, 9)["inputs"]
    first, second = (model.backbone.features(inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.layers, second.layers, strict=True))
    assert model.backbone.transformer.training
    assert not torch.equal(model.backbone(inputs), model.backbone(inputs))
