"""Probes of frozen features: votes, regressions and means, checked on features of which the answer is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import image_batch, tiny_image_model

from d2v_lightning import Backbone, TextEncoder, Transformer
from d2v_lightning.method.probing import few_label_indices, knn_accuracy, linear_accuracy, pooled_features
from d2v_lightning.method.teacher import Teacher


def test_the_nearest_vote_and_a_tie_goes_to_the_closer_ones() -> None:
    angles = torch.tensor([0.0, 0.1, 0.5, 0.6, 0.7])
    train = torch.stack([angles.cos(), angles.sin()], dim=1)
    train = torch.cat([train, -train])  # so that the mean is 0
    labels = torch.tensor([1, 1, 0, 0, 0, *[2] * 5])
    test = torch.tensor([[0.98, 0.2]])  # at an angle of .2
    votes = [knn_accuracy(train, labels, test, torch.tensor([1]), k=k) for k in (1, 3, 4, 5)]
    assert votes == [1.0, 1.0, 1.0, 0.0], "two of two, of three, of four with two others, and of five"


def test_only_directions_around_the_mean_count() -> None:
    train = torch.tensor([[1.0, 0.0]] * 5 + [[-1.0, 0.0]] * 5)
    labels = torch.tensor([0] * 5 + [1] * 5)
    test, expected = torch.tensor([[3.0, 0.1], [-0.2, 0.01], [0.1, 0.0], [-7.0, 1.0]]), torch.tensor([0, 1, 0, 1])
    for shift in (torch.zeros(2), torch.tensor([50.0, 0.0])):
        assert knn_accuracy(train + shift, labels, test + shift, expected, k=3) == 1.0
        assert knn_accuracy(train + shift, labels, test + shift, 1 - expected, k=3) == 0.0
    every = [knn_accuracy(train, labels, test, expected, k=k) for k in (10, 100)]
    assert every[0] == every[1], "there are no more than ten"


def test_a_linear_probe_finds_a_line_at_any_scale() -> None:
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(200, 4, generator=draw)
    labels = (features[:, 0] + features[:, 2] > 0).long()
    scale, shift = torch.tensor([1e-3, 1.0, 1e4, 1.0]), torch.tensor([5.0, 0.0, -3e4, 0.0])
    found = [
        linear_accuracy(x[:150], labels[:150], x[150:], labels[150:]) for x in (features, features * scale + shift)
    ]
    assert found[0] > 0.95
    assert found[1] == pytest.approx(found[0], abs=0.021)
    shuffled = labels[torch.randperm(200, generator=draw)]
    assert linear_accuracy(features[:150], shuffled[:150], features[150:], shuffled[150:]) < 0.75


def test_few_labels_are_so_many_of_every_class() -> None:
    labels = torch.tensor([2, 0, 1] * 7 + [0] * 30)
    chosen = few_label_indices(labels, 4, seed=3)
    assert labels[chosen].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert len(set(chosen.tolist())) == 12
    assert torch.equal(few_label_indices(labels, 4, seed=3), chosen)
    assert not torch.equal(few_label_indices(labels, 4, seed=4), chosen)
    assert len(few_label_indices(torch.tensor([0, 0, 1]), 2, seed=0)) == 3, "a class may have fewer"


def test_features_of_either_network_are_means_over_patches() -> None:
    model, images = tiny_image_model().eval(), image_batch(2, 9)["inputs"]
    model.teacher.transformer.blocks[0].mlp.fc1.weight.data.mul_(3.0)
    expected = model.backbone.features(images, layers=[-1]).layers[0].mean(dim=1)
    torch.testing.assert_close(pooled_features(model, images, None, "student"), expected)
    tokens, _ = model.encoder.features(images)
    result = model.teacher(model.backbone, images, tokens, None, keep=[2])[0]
    found = pooled_features(model, images, None, "teacher")
    torch.testing.assert_close(found, result.block[:, 1:].mean(dim=1))
    assert not torch.allclose(found, expected)


@pytest.mark.parametrize("part", ["student", "teacher"])
def test_padding_is_left_out_of_the_mean(part: Any) -> None:
    torch.manual_seed(0)
    backbone = Backbone(TextEncoder(16, 40, 20, mask_id=39), Transformer(16, 2, 2, layer_scale=None))
    module = torch.nn.Module()
    module.backbone, module.teacher = backbone, Teacher(backbone, "backbone")
    ids = torch.randint(3, 38, (2, 6))
    mask = torch.arange(6) >= torch.tensor([[4], [6]])
    found = pooled_features(module, ids, mask, part)
    torch.testing.assert_close(found[:1], pooled_features(module, ids[:1, :4], None, part))
    torch.testing.assert_close(found[1:], pooled_features(module, ids[1:], None, part))
