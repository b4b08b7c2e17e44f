"""Convolutions that are right on every processor, and one over time whose channels lie innermost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Operation = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def _convolve(conv: nn.Conv1d | nn.Conv2d, x: Tensor, operation: Operation) -> Tensor:
    """`operation(x, weight, bias)`, in float32 where oneDNN's bf16 kernel for AMX returns noise.

    That kernel is wrong for fewer than 32 channels where channels x kernel width is a multiple of 32 (torch 2.14). Every CPU
    takes float32 then, so that no result depends on the kind of CPU.
    """
    if x.device.type == "cpu" and (conv.in_channels // conv.groups) < 32:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if dtype == torch.bfloat16 and conv.in_channels // conv.groups * conv.kernel_size[-1] % 32 == 0:
            with torch.autocast("cpu", enabled=False):
                bias = None if conv.bias is None else conv.bias.float()
                return operation(x.float(), conv.weight.float(), bias).to(dtype)
    return operation(x, conv.weight, conv.bias)


class Conv1d(nn.Conv1d):
    """`nn.Conv1d` that takes float32 where a CPU's bf16 may be wrong."""

    def forward(self, input: Tensor) -> Tensor:
        return _convolve(self, input, self._conv_forward)


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` that takes float32 where a CPU's bf16 may be wrong."""

    def forward(self, input: Tensor) -> Tensor:
        return _convolve(self, input, self._conv_forward)


class FrameConv(nn.Conv1d):
    """`nn.Conv1d` without padding of (B, C, N) that is a transposed view of (B, N, C), and so is its result.

    It convolves a picture of height 1 in channels-last order: norms and GELU then read the memory in order, and nothing is
    transposed between the layers in either direction. `nn.Conv1d` itself takes three times as long on a CPU.
    """

    def forward(self, input: Tensor) -> Tensor:
        return _convolve(self, input, self._as_picture)

    def _as_picture(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        weight = weight.unsqueeze(2).contiguous(memory_format=torch.channels_last)
        return F.conv2d(x.unsqueeze(2), weight, bias, (1, self.stride[0])).squeeze(2)


class WeightNormedConv(Conv1d):
    """`Conv1d` with torch's weight norm over its kernel (a length for each place), which can be pickled.

    torch refuses to pickle parametrized modules, because their class is made on the way.
    """

    def __reduce_ex__(self, protocol: Any) -> Any:
        # torch's, for old names of the weight: it cannot be pickled, and is made anew.
        hooks = "_load_state_dict_pre_hooks"
        return _unpickled, ({name: value for name, value in self.__dict__.items() if name != hooks},)


def weight_normed(conv: WeightNormedConv) -> WeightNormedConv:
    """Weight norm put on a convolution."""
    nn.utils.parametrizations.weight_norm(conv, dim=2)
    return conv


def _unpickled(state: dict[str, Any]) -> WeightNormedConv:
    conv = weight_normed(WeightNormedConv(1, 1, 1))
    conv.__dict__.update(state)
    return conv
