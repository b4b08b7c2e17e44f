"""Targets: which blocks are averaged, settings that do not exist, and the norm "position"."""

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


def test_the_averaged_blocks_are_the_top_ones_or_those_that_are_named() -> None:
    assert Targets(3).layers(depth=8) == [5, 6, 7]
    assert Targets([4, 1]).layers(depth=5) == [1, 4]
    assert Targets(2).layers(depth=4, prenet_depth=2) == [2, 3]
    with pytest.raises(ValueError, match=r"the trunk has 4 blocks of which 2 \(prenet_depth\) are never averaged"):
        Targets(3).layers(depth=4, prenet_depth=2)


def test_each_result_is_normed_before_the_mean_and_the_mean_after_it() -> None:
    one, two = layers(tokens=4)[0], 100.0 * layers(tokens=4)[1]
    norm = torch.nn.functional.layer_norm
    width = one.shape[-1:]
    each = Targets(2, norm_each=["layer"], norm_after=[])([one, two])
    torch.testing.assert_close(each, (norm(one, width) + norm(two, width)) / 2)
    after = Targets(2, norm_each=[], norm_after=["layer"])([one, two])
    torch.testing.assert_close(after, norm((one + two) / 2, width))


@pytest.mark.parametrize(("norm", "over"), [("layer", (2,)), ("instance", (1,)), ("batch", (0, 1))])
def test_a_norm_leaves_mean_0_and_variance_1_over_its_dimensions(norm: Any, over: tuple[int, ...]) -> None:
    x = 3.0 + 5.0 * torch.randn(6, 7, 8, generator=torch.Generator().manual_seed(2))
    for padding_mask in (None, torch.zeros(6, 7, dtype=torch.bool)):
        made = Targets(1, norm_each=[norm], norm_after=[])([x], padding_mask)
        mean, variance = made.mean(dim=over), made.var(dim=over, correction=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-5, rtol=0.0)
        torch.testing.assert_close(variance, torch.ones_like(variance), atol=1e-3, rtol=0.0)
