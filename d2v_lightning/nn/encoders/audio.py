"""Waveforms to frames: wav2vec 2.0's seven convolutions (arXiv 2006.11477), a projection, convolutional positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2v_lightning.nn.convolution import Conv1d, FrameConv, WeightNormedConv, weight_normed
from d2v_lightning.nn.encoders.encoder import Encoder, Padding, Position
from d2v_lightning.support.errors import UserError, at_least

RATE = 16_000
"""Samples a second of every recording that a network hears."""

CONV_LAYERS = ((512, 10, 5), *((512, 3, 2),) * 4, *((512, 2, 2),) * 2)
"""(channels, kernel, stride) of the published feature encoder: 16 kHz to 50 Hz, 400 samples for the first frame."""

Length = TypeVar("Length", int, Tensor)


def feature_lengths(samples: Length, conv_layers: Sequence[Sequence[int]] = CONV_LAYERS) -> Length:
    """Waveform samples -> frames, for one length or a tensor of them; 0 where there is not enough for a frame."""
    for _, kernel, stride in conv_layers:
        samples = (samples - kernel) // stride + 1
    return samples.clamp(min=0) if isinstance(samples, Tensor) else max(0, samples)


def shortest_input(frames: int, conv_layers: Sequence[Sequence[int]] = CONV_LAYERS) -> int:
    """Samples that just make so many frames."""
    for _, kernel, stride in reversed(conv_layers):
        frames = (frames - 1) * stride + kernel
    return frames


class NormOverTime(nn.GroupNorm):
    """Group norm with one group a channel, over those frames of each clip that are sound."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, input: Tensor, frames: Tensor | None = None) -> Tensor:
        """Norm (B, C, N) over the first `frames` (B,) of N, or over all of them."""
        if frames is None:
            return super().forward(input)
        x = input.float()
        inside = (torch.arange(x.shape[2], device=x.device) < frames[:, None])[:, None, :]
        count = frames.clamp(min=1)[:, None, None]
        mean = x.where(inside, 0.0).sum(dim=2, keepdim=True) / count
        variance = (x - mean).square().where(inside, 0.0).sum(dim=2, keepdim=True) / count
        normed = (x - mean) * torch.rsqrt(variance + self.eps)
        return (normed * self.weight[:, None] + self.bias[:, None]).to(input.dtype)


class ConvPosition(Position):
    """Adds to each frame what grouped convolutions over its neighbours make of them.

    Args:
        dim: width D.
        depth: convolutions, each followed by a layer norm without parameters and GELU; 1 is the single weight-normed
            convolution of wav2vec 2.0, followed by GELU alone.
        width: receptive field in frames, shared out among the `depth` convolutions.
        groups: of each convolution.
        padding: see `AudioEncoder`.
    """

    mixes_tokens = True

    def __init__(
        self, dim: int = 768, depth: int = 5, width: int = 95, groups: int = 16, padding: Padding = "exact"
    ) -> None:
        super().__init__()
        at_least(1, dim=dim)
        if min(depth, width, groups) < 1 or dim % groups:
            raise UserError(
                f"position_depth is {depth}, position_width {width}, position_groups {groups}: all start at 1, "
                f"the groups must divide dim {dim}"
            )
        self.dim, self.padding = dim, padding
        kernel = width if depth == 1 else max(3, width // depth)
        kind = WeightNormedConv if depth == 1 else Conv1d
        convs = [kind(dim, dim, kernel, padding=kernel // 2, groups=groups) for _ in range(depth)]
        if isinstance(convs[0], WeightNormedConv):
            nn.init.normal_(convs[0].weight, std=math.sqrt(4.0 / (kernel * dim)))
            assert convs[0].bias is not None
            nn.init.zeros_(convs[0].bias)
            weight_normed(convs[0])
        self.convs = nn.ModuleList(convs)

    def forward(self, tokens: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        length = tokens.shape[1]
        if padding_mask is not None and self.padding == "released_1":  # also in what the trunk reads
            tokens = tokens.masked_fill(padding_mask[..., None], 0.0)
        x = tokens.transpose(1, 2)
        for conv in self.convs:
            if padding_mask is not None and self.padding == "exact":
                x = x.masked_fill(padding_mask[:, None, :], 0.0)
            x = conv(x)[..., :length]  # an even kernel makes one frame too many
            if len(self.convs) > 1:
                x = F.layer_norm(x.transpose(1, 2), (self.dim,)).transpose(1, 2)
            x = F.gelu(x)
        return tokens + x.transpose(1, 2)


class AudioEncoder(Encoder):
    """Convolutional feature encoder of waveforms at 16 kHz.

    The defaults are data2vec 1.0 for speech, Base (configs/pretrain/audio_base.yaml).

    Args:
        dim: width D.
        conv_layers: (channels, kernel, stride) of each convolution.
        conv_norm: "layer" norms every convolution over its channels; "group" norms the first one over time, per channel.
        conv_bias: biases in the convolutions.
        position_depth, position_width, position_groups: see `ConvPosition`.
        feature_grad_mult: factor on the gradient into the convolutions; 0 trains none of them.
        padding: see `Encoder`. In the released code padding leaks into group norm and positions; 1.0 zeroes padded frames
            once, before the positions, 2.0 never.

    Raises:
        ValueError: no convolutions, or an unknown choice.
    """

    def __init__(
        self,
        dim: int = 768,
        conv_layers: Sequence[Sequence[int]] = CONV_LAYERS,
        conv_norm: Literal["layer", "group"] = "layer",
        conv_bias: bool = False,
        position_depth: int = 5,
        position_width: int = 95,
        position_groups: int = 16,
        feature_grad_mult: float = 1.0,
        padding: Padding = "exact",
    ) -> None:
        super().__init__()
        if not conv_layers or any(len(layer) != 3 or min(layer) < 1 for layer in conv_layers):
            raise UserError(
                f"conv_layers is {conv_layers}: a list of (channels, kernel, stride), all positive, is needed"
            )
        at_least(1, dim=dim)
        if conv_norm not in ("layer", "group"):
            raise UserError(f"conv_norm is {conv_norm!r}: choose 'layer' or 'group'")
        if padding not in get_args(Padding):
            raise UserError(f"padding is {padding!r}: choose from {', '.join(get_args(Padding))}")
        self.dim, self.conv_norm, self.feature_grad_mult, self.padding = dim, conv_norm, feature_grad_mult, padding
        self.conv_layers = [(channels, kernel, stride) for channels, kernel, stride in conv_layers]
        widths = [1] + [channels for channels, _, _ in self.conv_layers]
        self.convs = nn.ModuleList(
            FrameConv(before, after, kernel, stride, bias=conv_bias)
            for before, (after, kernel, stride) in zip(widths[:-1], self.conv_layers, strict=True)
        )
        for conv in self.convs:
            assert isinstance(conv, nn.Conv1d)
            nn.init.kaiming_normal_(conv.weight)
        norms: list[nn.Module] = [NormOverTime(widths[1])]
        self.conv_norms = nn.ModuleList(map(nn.LayerNorm, widths[1:]) if conv_norm == "layer" else norms)
        self.norm: nn.Module = nn.LayerNorm(widths[-1])
        self.proj = nn.Linear(widths[-1], dim)
        self.position = ConvPosition(dim, position_depth, position_width, position_groups, padding)

    def train_convolutions(self) -> None:
        """Let the whole gradient into the convolutions from now on, and say so in what a checkpoint stores."""
        self.feature_grad_mult = 1.0
        if "feature_grad_mult" in self.config["init_args"]:
            self.config["init_args"]["feature_grad_mult"] = 1.0

    def features(self, inputs: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Waveforms (B, S) -> frames (B, N, D) and their padding (B, N), N = feature_lengths(S).

        Raises:
            ValueError: the waveforms are not (B, S), or too short for a frame.
        """
        if inputs.ndim != 2:
            raise UserError(f"waveforms are {tuple(inputs.shape)}: (B, S), one channel, is needed")
        if feature_lengths(inputs.shape[1], self.conv_layers) < 1:
            least = shortest_input(1, self.conv_layers)
            raise UserError(f"the waveforms have {inputs.shape[1]} samples: the first frame needs {least}")
        lengths = None if padding_mask is None else (~padding_mask).sum(dim=1)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.feature_grad_mult > 0):
            x = self.frames(inputs, lengths)
        if 0 < self.feature_grad_mult != 1:
            x = x.detach() + self.feature_grad_mult * (x - x.detach())
        tokens = self.proj(self.norm(x))
        if lengths is None:
            return tokens, None
        frames = feature_lengths(lengths, self.conv_layers)
        return tokens, torch.arange(tokens.shape[1], device=tokens.device) >= frames[:, None]

    def frames(self, inputs: Tensor, lengths: Tensor | None) -> Tensor:
        """Waveforms (B, S), of which `lengths` (B,) samples are sound, -> (B, N, C), what is normed and projected."""
        x = inputs[:, :, None]
        for layer, conv in enumerate(self.convs):
            x = conv(x.transpose(1, 2)).transpose(1, 2)
            if self.conv_norm == "layer":
                x = self.conv_norms[layer](x)
            elif layer == 0:
                frames = None
                if lengths is not None and self.padding == "exact":
                    frames = feature_lengths(lengths, self.conv_layers[:1])
                x = self.conv_norms[0](x.transpose(1, 2), frames).transpose(1, 2)
            x = F.gelu(x)
        return x
