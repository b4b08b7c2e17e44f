"""The norm "position" of targets: what all samples share at a position is taken out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import image_batch, tiny_image_model
from torch import Tensor

from d2v_lightning import Targets

CENTRED = Targets(2, norm_each=["position", "layer"], norm_after=[])


def layers(samples: int = 5, tokens: int = 7) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(samples, tokens, 16, generator=generator) for _ in range(2)]


def padding(*lengths: int, tokens: int = 7) -> Tensor:
    return torch.arange(tokens) >= torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("mask", [None, padding(7, 7, 5, 3, 2)], ids=["whole", "padded"])
def test_targets_that_follow_from_the_position_vanish(mask: Tensor | None) -> None:
    constant = [layer[:1].expand(5, -1, -1) for layer in layers()]
    made = CENTRED(constant, mask)
    inside = torch.ones(5, 7, dtype=torch.bool) if mask is None else ~mask
    assert made[inside].abs().max() < 1e-3
    assert Targets(2, norm_after=[])(constant, mask)[inside].std() > 0.5  # without, they look healthy


def test_what_is_common_to_a_position_changes_nothing() -> None:
    shifted = [layer + 3 * torch.randn(1, 7, 16) for layer in layers()]
    torch.testing.assert_close(CENTRED(shifted), CENTRED(layers()), atol=1e-5, rtol=1e-4)


def test_the_mean_is_over_the_samples_and_leaves_the_scale_alone() -> None:
    layer = layers()[0]
    made = Targets(1, norm_each=["position"], norm_after=[])([layer])
    torch.testing.assert_close(made, layer - layer.mean(dim=0))


def test_padding_does_not_count() -> None:
    mask = padding(7, 7, 5, 3, 2)
    results = layers()
    expected = CENTRED(results, mask)[~mask]
    noise = [layer.where(~mask[..., None], 100 * torch.randn_like(layer)) for layer in results]
    torch.testing.assert_close(CENTRED(noise, mask)[~mask], expected)
    longer = [torch.cat([layer, torch.randn(5, 4, 16)], dim=1) for layer in results]  # a batch padded further
    torch.testing.assert_close(CENTRED(longer, padding(7, 7, 5, 3, 2, tokens=11))[:, :7][~mask], expected)
    alone = results[0][:2].mean(dim=0)[5:]  # two samples reach the last two positions
    made = Targets(1, norm_each=["position"], norm_after=[])(results[:1], mask)
    torch.testing.assert_close(made[0, 5:], results[0][0, 5:] - alone)


def test_a_batch_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="'position' of a batch of one leaves nothing"):
        CENTRED([layer[:1] for layer in layers()])


def test_a_step_with_it_is_one_graph() -> None:
    model = tiny_image_model().train()
    model.make_targets = CENTRED
    model.log = lambda *args, **kwargs: None  # type: ignore[method-assign, assignment]
    batch = {**image_batch(3, 9), "hidden": image_batch(3, 9)["mask"].flatten().nonzero()[:, 0]}
    torch._dynamo.reset()
    compiled = torch.compile(model.regress, fullgraph=True, dynamic=False, backend="eager")
    torch.testing.assert_close(compiled(batch)[0], model.regress(batch)[0])


def test_padding_that_enters_as_data_is_one_graph() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(CENTRED, fullgraph=True, dynamic=False, backend="eager")
    for mask in (padding(7, 7, 5, 3, 2), padding(1, 2, 3, 4, 7)):
        torch.testing.assert_close(compiled(layers(), mask), CENTRED(layers(), mask))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"average_top_k_layers": 0}, "at least one block"),
        ({"norm_each": ["group"]}, "unknown norm 'group'"),
        ({"layer_results": "end"}, "choose 'block' or 'ffn'"),
    ],
)
def test_bad_targets_are_refused_by_name(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Targets(**arguments)
    with pytest.raises(ValueError, match="the trunk has 3 blocks"):
        tiny_image_model(average_top_k_layers=4)
