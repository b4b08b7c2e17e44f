"""ImageEncoder: patches are a product, whatever their size, and know nothing of each other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from d2v_lightning.nn.encoders.image import PatchEmbedding


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
