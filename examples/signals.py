"""A modality of your own in two classes: waves that travel over the channels of a sensor array.

    python cli.py fit --config examples/signals_v1.yaml     (data2vec 1.0; examples/signals_v2.yaml: 2.0)

docs/bring-your-own-modality.md goes through this file.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import Dataset

from d2v_lightning import Configurable, Encoder
from d2v_lightning.nn.encoders import Position
from datamodules import EpochBatchSampler, ResumableLoader, SequenceMaskCollator
from datamodules.shared.samplers import Key, derived_seed

CHANNELS, LENGTH = 4, 256
PERIODS, DELAYS = (9.0, 12.0, 16.0), (-2.0, 2.0)  # of a wave, in samples; its delay from one channel to the next


class LearnedPosition(Position):
    """Adds a learned vector (D,) for each of `num_tokens` places."""

    def __init__(self, num_tokens: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(0.02 * torch.randn(1, num_tokens, dim))

    def forward(self, tokens: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        return tokens + self.embedding[:, : tokens.shape[1]]


class SignalEncoder(Encoder):
    """Signals (B, C, T) -> a token for every `patch` samples of all channels (B, N, D), N = T // patch."""

    def __init__(self, channels: int = CHANNELS, length: int = LENGTH, patch: int = 8, dim: int = 64) -> None:
        super().__init__()
        self.dim, self.patch = dim, patch
        self.patches = nn.Conv1d(channels, dim, kernel_size=patch, stride=patch)
        self.position = LearnedPosition(length // patch, dim)

    def features(self, inputs: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        if padding_mask is not None:  # (B, T) -> (B, N): what is padded in part is padding
            padding_mask = padding_mask.unfold(1, self.patch, self.patch).any(dim=2)
        return self.patches(inputs).transpose(1, 2), padding_mask


class Waves(Dataset[dict[str, Any]]):
    """A wave in noise. Its class, for probes alone, is its period and the end of the array that it comes from."""

    def __init__(self, split: Literal["train", "test"], size: int, seed: int) -> None:
        self.split, self.size, self.seed = split, size, seed

    def __getitem__(self, key: Key) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(derived_seed(self.split, self.seed, key[1]))
        label = int(torch.randint(len(PERIODS) * len(DELAYS), (), generator=generator))
        period, delay = PERIODS[label // len(DELAYS)], DELAYS[label % len(DELAYS)]
        start, phase, swing = torch.rand(3, generator=generator).tolist()
        time = torch.arange(LENGTH) - delay * torch.arange(CHANNELS)[:, None]
        loudness = (0.5 + swing) * (1 + torch.cos(2 * math.pi * (time / 80 + start)))
        wave = loudness * torch.sin(2 * math.pi * (time / period + phase))
        noise = 0.5 * torch.randn(CHANNELS, LENGTH, generator=generator)
        return {"inputs": wave + noise, "label": label, "index": key[1], "key": key}


class SignalDataModule(Configurable, LightningDataModule):
    """Waves with one mask a sample (1.0) or several (2.0). `Configurable`, so that a checkpoint can give it back."""

    def __init__(
        self, patch: int = 8, num_masks: int = 1, mask_ratio: float = 0.5, batch_size: int = 64, seed: int = 0
    ) -> None:
        super().__init__()
        self.batch_size, self.seed = batch_size, seed
        self.collator = SequenceMaskCollator(LENGTH // patch, None, mask_ratio, 3, num_masks, seed)

    def _loader(self, split: Literal["train", "test"], size: int, training: bool = False) -> ResumableLoader:
        sampler = EpochBatchSampler(size, self.batch_size, self.seed, shuffle=training)
        endless = training and self.trainer is not None
        return ResumableLoader(Waves(split, size, self.seed), sampler, self.collator, endless=endless)

    def train_dataloader(self) -> ResumableLoader:
        return self._loader("train", 4096, training=True)

    def val_dataloader(self) -> ResumableLoader:
        return self._loader("test", 512)

    test_dataloader = predict_dataloader = val_dataloader

    def probe_dataloaders(self) -> tuple[ResumableLoader, ResumableLoader]:
        """Labelled batches (train, test) for `OnlineProbe`."""
        return self._loader("train", 1024), self._loader("test", 512)
