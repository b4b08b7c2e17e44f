"""ImageEncoder: patches are a product, whatever their size, and know nothing of each other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from d2v_lightning import ImageEncoder
from d2v_lightning.nn.encoders.image import PatchEmbedding
from d2v_lightning.nn.position import sine_cosine_positions
from d2v_lightning.support.errors import UserError


@pytest.mark.parametrize("patch", [(2, 2), (3, 5), (16, 8)])
@pytest.mark.parametrize("channels", [1, 4, 6])
def test_a_patch_embedding_is_the_convolution_that_it_stands_for(patch: tuple[int, int], channels: int) -> None:
    torch.manual_seed(0)
    product = PatchEmbedding(channels, 12, patch, patch)
    assert isinstance(product, nn.Conv2d)
    conv = nn.Conv2d(channels, 12, patch, patch)
    conv.load_state_dict(product.state_dict())
    seen: list[torch.Size] = []
    product.register_forward_hook(lambda part, inputs, output: seen.append(output.shape))
    images = torch.randn(2, channels, 4 * patch[0] + 1, 3 * patch[1])  # a row of pixels beyond the last patch
    for x in (images, images.to(memory_format=torch.channels_last), images[0]):
        one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        made, expected = product(one), conv(other)
        torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)
        weights = torch.randn(expected.shape)
        gradients = torch.autograd.grad((made * weights).sum(), [one, product.weight, product.bias])
        theirs = torch.autograd.grad((expected * weights).sum(), [other, conv.weight, conv.bias])
        torch.testing.assert_close(gradients, theirs, atol=1e-4, rtol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = product(x)
        assert rounded.dtype == torch.bfloat16
        error = (rounded.float() - expected).norm() / expected.norm()
        assert error < 0.01
    assert seen[0] == (2, 12, 4, 3)


def test_a_patch_embedding_compiles_and_exports() -> None:
    torch._dynamo.reset()
    product, images = PatchEmbedding(4, 12, (3, 5), (3, 5)), torch.randn(2, 4, 13, 15)
    expected = nn.functional.conv2d(images, product.weight, product.bias, product.stride)
    compiled = torch.compile(product, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), expected, atol=1e-5, rtol=1e-5)
    exported = torch.export.export(product, (images,)).module()
    torch.testing.assert_close(exported(images), expected, atol=1e-5, rtol=1e-5)


def test_a_patch_knows_its_own_pixels_alone_and_comes_row_by_row() -> None:
    torch.manual_seed(0)
    encoder = ImageEncoder((6, 8), (3, 2), in_channels=2, dim=12)
    assert encoder.grid == (2, 4)
    images = torch.randn(1, 2, 6, 8)
    tokens, padding = encoder.features(images)
    assert padding is None
    for row, column in ((0, 3), (1, 0)):
        changed = images.clone()
        changed[0, 1, 3 * row + 2, 2 * column] += 1.0
        differs = (encoder.features(changed)[0] != tokens).any(dim=2)[0]
        assert differs.nonzero().flatten().tolist() == [4 * row + column]


def test_positions_of_every_kind_put_a_class_token_in_front() -> None:
    torch.manual_seed(0)
    tokens, made = torch.randn(2, 6, 8), {}
    for kind in ("none", "learned", "sine_cosine"):
        position = ImageEncoder((4, 6), 2, dim=8, positions=kind, init="xavier").position
        x = position(tokens)
        assert x.shape == (2, 7, 8)
        made[kind] = position, x
    position, x = made["none"]
    assert torch.equal(x[:, 1:], tokens)
    assert torch.equal(x[:, 0], position.class_token[0].expand(2, -1))
    position, x = made["learned"]
    whole = torch.cat([position.class_token.expand(2, -1, -1), tokens], dim=1)
    torch.testing.assert_close(x, whole + position.embedding)
    position, x = made["sine_cosine"]
    torch.testing.assert_close(x[:, 1:], tokens + sine_cosine_positions((2, 3), 8))
    assert torch.equal(x[:, 0], position.class_token[0].expand(2, -1))
    assert [name for name, _ in position.named_parameters()] == ["class_token"]
    assert "fixed" not in position.state_dict()


@torch.no_grad()
def test_networks_of_1_0_start_within_one_deviation_and_those_of_2_0_spread_over_the_patch() -> None:
    torch.manual_seed(0)
    one = ImageEncoder(16, 4, dim=64, positions="learned")
    for tensor in (one.patch_embed.weight, one.position.class_token, one.position.embedding):
        assert tensor is not None
        assert 0.01 < float(tensor.abs().max()) <= 0.02
    two = ImageEncoder(16, 4, dim=64, init="xavier")
    bound = (6 / (64 + 3 * 4 * 4)) ** 0.5
    assert 0.95 * bound < float(two.patch_embed.weight.abs().max()) <= bound
    assert float(two.position.class_token.abs().max()) > 1.0
    # 1.0: `_init_weights` of modeling_cyclical.py; 2.0: `PatchEmbed` of mae.py, a convolution that nothing resets.
    assert one.patch_embed.bias is not None
    assert not one.patch_embed.bias.any()
    assert two.patch_embed.bias is not None
    bound = (3 * 4 * 4) ** -0.5
    assert 0.9 * bound < float(two.patch_embed.bias.abs().max()) <= bound


def test_what_is_no_picture_of_this_encoder_is_refused() -> None:
    encoder = ImageEncoder(16, 4, dim=8)
    with pytest.raises(
        UserError, match=r"images are \(3, 16, 20\) \(C, H, W\), the encoder was built for \(3, 16, 16\)"
    ):
        encoder.features(torch.zeros(1, 3, 16, 20))
    with pytest.raises(UserError, match="images have no padding"):
        encoder.features(torch.zeros(1, 3, 16, 16), torch.zeros(1, 16, dtype=torch.bool))
    with pytest.raises(UserError, match="image_size 16x18 is not a whole number of patches of 4x4"):
        ImageEncoder((16, 18), 4)
    with pytest.raises(UserError, match="patch_size is 0x4: both sides must be 1 pixel or more"):
        ImageEncoder(16, (0, 4))
    with pytest.raises(UserError, match="positions is 'sine', init 'vision': choose none, learned, sine_cosine"):
        ImageEncoder(16, 4, positions="sine")  # type: ignore[arg-type]
