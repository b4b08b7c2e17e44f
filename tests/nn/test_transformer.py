"""Transformer: attention, block and stack compute what they say, and refuse what fits no trunk."""

from __future__ import annotations

import pytest
import torch
from tiny import image_batch, tiny_image_model

from d2v_lightning import Alibi, RelativePositionBias, Transformer


@pytest.mark.parametrize("bias", [Alibi(1), Alibi(3), RelativePositionBias((2, 2), 1)])
def test_a_bias_for_another_number_of_heads_is_refused(bias: Alibi | RelativePositionBias) -> None:
    heads = bias.tables[0].shape[-1]
    with pytest.raises(ValueError, match=rf"position_bias\.num_heads is {heads}, but the trunk's num_heads is 2"):
        Transformer(dim=16, depth=1, num_heads=2, position_bias=bias)


def test_layer_drop_keeps_every_parameter_in_the_graph() -> None:
    model = tiny_image_model(layer_drop=1.0)
    model.train()
    model.teacher.eval()
    model.training_step(image_batch(2, 9), 0).backward()
    missing = [name for name, p in model.student.named_parameters() if p.grad is None]
    assert not missing


def test_gradient_checkpointing_changes_nothing() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny_image_model(gradient_checkpointing=checkpointing, drop_path=0.5)
        torch.manual_seed(1)
        model.training_step(image_batch(2, 9), 0).backward()
        gradients.append([p.grad for p in model.student.parameters()])
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected)
