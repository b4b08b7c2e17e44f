"""Convolutions in bf16 are float32's, rounded, also where some CPUs return noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from d2v_lightning.nn.convolution import Conv1d, Conv2d, FrameConv


@pytest.mark.parametrize(
    ("kind", "plain", "arguments", "shape"),
    [
        (FrameConv, nn.Conv1d, (8, 8, 8, 4), (2, 8, 50)),
        (FrameConv, nn.Conv1d, (16, 24, 4, 2), (2, 16, 50)),
        (Conv1d, nn.Conv1d, (16, 16, 4, 1, 2), (2, 16, 50)),
        (Conv1d, nn.Conv1d, (64, 64, 8, 1, 4, 1, 4), (2, 64, 50)),
        (Conv2d, nn.Conv2d, (16, 16, 4, 1, 2), (2, 16, 5, 5)),
    ],
)
def test_few_channels_are_convolved_in_float32(
    kind: Any, plain: Any, arguments: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    conv, reference = kind(*arguments), plain(*arguments)
    reference.load_state_dict(conv.state_dict())
    x = torch.randn(shape)
    expected = reference(x)
    torch.testing.assert_close(conv(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        rounded_once = conv(x)
    assert rounded_once.dtype == torch.bfloat16
    torch.testing.assert_close(rounded_once.float(), expected, rtol=2**-8, atol=1e-6)
    rounded = reference.bfloat16().float()
    expected = rounded(x.bfloat16().float())
    made = conv.bfloat16()(x.bfloat16())
    torch.testing.assert_close(made.float(), expected, rtol=2**-8, atol=1e-6)
