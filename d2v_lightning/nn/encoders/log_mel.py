"""Waveforms to frames by a log-mel spectrum, which needs no learning: for hours of speech rather than hundreds of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from d2v_lightning.nn.encoders.audio import RATE, AudioEncoder, feature_lengths
from d2v_lightning.nn.fixed import FixedBuffers
from d2v_lightning.support.errors import UserError

_WINDOW, _HOP, _FFT = 400, 320, 512  # the frames of `CONV_LAYERS`: 25 ms, 50 a second
_FLOOR = 1e-3  # added to the power in a band; white noise of variance 1 has 150 at each frequency
_SPREAD = 2.5  # brings them near a standard deviation of 1; those of our prompts have 3.3


def mel_filters(bands: int) -> Tensor:
    """Weights (257, C) of the powers of a 512-point spectrum in triangular bands on HTK's mel scale, 0 to 8 kHz."""
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(_FFT // 2 + 1, bands, 0.0, RATE / 2, RATE, norm=None, mel_scale="htk")
    return torch.from_numpy(filters).float()


class LogMelEncoder(FixedBuffers, AudioEncoder):
    """An `AudioEncoder` with log-mel bands in place of the convolutions, at the same frames.

    Not of the papers: it is ours, for little data, from which the convolutions hardly learn to be a filter bank: with a
    quarter of an hour of transcripts CTC makes half the errors (RESULTS.md, "Speech: a log-mel front end"). Each band is
    centred over the frames of its clip, which takes a microphone's colour out. There is nothing to freeze, and neither Meta's
    layout nor transformers' has such a network.

    Args:
        dim: width D.
        bands: C.
        position_depth, position_width, position_groups: see `ConvPosition`.

    Raises:
        ValueError: no bands, or more than the spectrum has; positions that are impossible.
    """

    def __init__(
        self,
        dim: int = 256,
        bands: int = 80,
        position_depth: int = 5,
        position_width: int = 95,
        position_groups: int = 16,
    ) -> None:
        if bands < 1:
            raise UserError(f"bands is {bands}: at least 1 is needed")
        super().__init__(
            dim,
            [(bands, _WINDOW, _HOP)],
            position_depth=position_depth,
            position_width=position_width,
            position_groups=position_groups,
        )
        self.convs, self.conv_norms = nn.ModuleList(), nn.ModuleList()
        self.norm = nn.Identity()
        self.register_fixed()

    def fixed_buffers(self) -> dict[str, Tensor]:
        angles = torch.arange(_WINDOW)[:, None] * torch.arange(_FFT // 2 + 1) * (2 * torch.pi / _FFT)
        waves = torch.hann_window(_WINDOW)[:, None] * torch.stack([angles.cos(), angles.sin()], dim=1).flatten(1)
        bands = self.conv_layers[0][0]
        filters = mel_filters(bands)
        if narrow := int((filters.sum(dim=0) == 0).sum()):
            raise UserError(
                f"bands is {bands}: {narrow} of them are narrower than a frequency of the spectrum, lower it"
            )
        return {"waves": waves, "filters": filters}

    def frames(self, inputs: Tensor, lengths: Tensor | None) -> Tensor:
        """Waveforms (B, S), of which `lengths` (B,) samples are sound, -> bands (B, N, C), worked out in float32."""
        with torch.autocast(inputs.device.type, enabled=False):
            parts = inputs.float().unfold(1, _WINDOW, _HOP) @ self.get_buffer("waves").float()
            power = parts.square().unflatten(2, (2, -1)).sum(dim=2)
            bands = (power @ self.get_buffer("filters").float() + _FLOOR).log()
            if lengths is None:
                mean = bands.mean(dim=1, keepdim=True)
            else:
                count = feature_lengths(lengths, self.conv_layers)[:, None, None]
                inside = torch.arange(bands.shape[1], device=bands.device)[:, None] < count
                mean = bands.where(inside, 0.0).sum(dim=1, keepdim=True) / count.clamp(min=1)
        return ((bands - mean) / _SPREAD).to(inputs.dtype)
