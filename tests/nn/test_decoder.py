"""Decoders: heads start and compute as documented, and convolutions see neighbours but neither padding nor other rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from d2v_lightning import ConvDecoder, LinearDecoder, MlpDecoder
from d2v_lightning.support.errors import UserError


@torch.no_grad()
def test_heads_start_as_their_recipes_say() -> None:
    torch.manual_seed(0)
    vision, normal, default = (LinearDecoder(64, init) for init in ("vision", "normal", "default"))
    assert 0.019 < float(vision.proj.weight.abs().max()) <= 0.02
    assert float(normal.proj.weight.abs().max()) > 0.05
    assert float(normal.proj.weight.std()) == pytest.approx(0.02, rel=0.05)
    assert float(default.proj.weight.std()) == pytest.approx((1 / 64 / 3) ** 0.5, rel=0.05)
    assert not vision.proj.bias.any()
    assert not normal.proj.bias.any()
    assert default.proj.bias.any()
    with pytest.raises(UserError, match="init is 'xavier': choose 'vision', 'default' or 'normal'"):
        LinearDecoder(8, "xavier")  # type: ignore[arg-type]


@torch.no_grad()
@pytest.mark.parametrize("init", ["default", "normal"])
def test_a_decoder_of_2_0_starts_as_released(init: Any) -> None:
    """Images and speech call `DecoderBase.reset_parameters` (modules.py): torch's default, uniform within 1 / sqrt(fan in).
    `TextEncoder.reset_parameters` (text.py) does not: `init_bert_params` stands, normal of std .02 and bias 0."""
    torch.manual_seed(0)
    decoder = ConvDecoder(64, depth=1, width=256, groups=4, projection_depth=2, init=init)
    for layer, width in zip(decoder.proj, (256, 512), strict=True):
        assert isinstance(layer, torch.nn.Linear)
        bound = width**-0.5
        if init == "default":
            assert 0.98 * bound < float(layer.weight.abs().max()) <= bound
            assert 0.8 * bound < float(layer.bias.abs().max()) <= bound
        else:
            assert float(layer.weight.std()) == pytest.approx(0.02, rel=0.02)
            assert float(layer.weight.abs().max()) > 0.06
            assert not layer.bias.any()
    (conv,) = decoder.convs
    assert float(conv.weight.abs().max()) <= (3 * 16) ** -0.5 * 1.001
    assert conv.bias is not None
    assert conv.bias.any()


def test_an_mlp_is_linear_maps_with_gelu_between_them() -> None:
    torch.manual_seed(0)
    x, decoder = torch.randn(5, 6), MlpDecoder(6, depth=3)
    assert [tuple(layer.weight.shape) for layer in decoder.layers] == [(12, 6), (12, 12), (6, 12)]
    first, second, third = decoder.layers
    torch.testing.assert_close(decoder(x), third(F.gelu(second(F.gelu(first(x))))))
    with pytest.raises(UserError, match="depth is 1: an MlpDecoder has 2 linear maps or more"):
        MlpDecoder(6, depth=1)


@pytest.mark.parametrize("residual", [True, False])
def test_a_convolution_is_normed_and_added_to_its_input_where_it_is_as_wide(residual: bool) -> None:
    torch.manual_seed(0)
    decoder = ConvDecoder(8, depth=2, width=12, groups=2, residual=residual, projection_depth=2, projection_ratio=1.5)
    x = torch.randn(2, 5, 8)
    positions = torch.tensor([0, 4, 7, 9])
    one = F.gelu(F.layer_norm(decoder.convs[0](x.transpose(1, 2)).transpose(1, 2), (12,)))
    two = F.gelu(F.layer_norm(decoder.convs[1](one.transpose(1, 2)).transpose(1, 2), (12,)))
    two = two + one if residual else two
    assert [tuple(layer.weight.shape) for layer in decoder.proj] == [(18, 12), (8, 18)]
    expected = decoder.proj[1](F.gelu(decoder.proj[0](two.flatten(0, 1)[positions])))
    torch.testing.assert_close(decoder(x, positions), expected)


def reached(decoder: ConvDecoder, place: int, length: int) -> list[int]:
    """Places in the first of two rows whose prediction depends on a place in it; the other row never does."""
    x = torch.randn(2, length, decoder.dim)
    changed = x.clone()
    changed[0, place] += 1.0
    everywhere = torch.arange(2 * length)
    differs = (decoder(x, everywhere) != decoder(changed, everywhere)).any(dim=1)
    assert not differs[length:].any()
    return differs[:length].nonzero().flatten().tolist()


def test_neighbours_are_those_of_the_sequence_or_the_picture() -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"width": 8, "groups": 2}
    assert reached(ConvDecoder(8, depth=1, kernel=3, **options), 4, 9) == [3, 4, 5]
    assert reached(ConvDecoder(8, depth=2, kernel=3, **options), 4, 9) == [2, 3, 4, 5, 6]
    assert reached(ConvDecoder(8, depth=1, kernel=4, **options), 4, 9) == [3, 4, 5, 6], (
        "an even kernel keeps the length"
    )
    assert reached(ConvDecoder(8, grid=(3, 4), depth=1, **options), 3, 12) == [2, 3, 6, 7]


def test_what_stands_at_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    decoder = ConvDecoder(8, depth=2, width=8, groups=2)
    x, padding_mask = torch.randn(1, 6, 8), torch.arange(6)[None] >= 4
    positions = torch.arange(4)
    alone = decoder(x[:, :4], positions)
    torch.testing.assert_close(decoder(x, positions, padding_mask), alone)
    assert not torch.allclose(decoder(x, positions), alone)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"groups": 3}, "groups must divide width and dim 8"),
        ({"depth": 0}, "depth 0"),
        ({"projection_ratio": 0.01}, "projection must be one wide or more"),
        ({"input_dropout": 1.5}, "input_dropout 1.5: it is a probability"),
    ],
)
def test_a_decoder_that_cannot_be_made_is_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        ConvDecoder(**{"dim": 8, "width": 8, "groups": 2, **arguments})
