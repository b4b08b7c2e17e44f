"""Which part of a long recording a batch takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from datamodules.shared.samplers import Key, derived_seed


class Crops(NamedTuple):
    """How long the clips of a batch may be, and where those that are longer are cropped.

    to_shortest: every clip to the shortest of the batch.
    max_samples: no clip is longer in any case; None for no limit.
    seed: of the places.
    """

    to_shortest: bool = False
    max_samples: int | None = None
    seed: int = 0

    def limit(self, lengths: Sequence[int]) -> int:
        """Samples of the longest clip of a batch of clips with such lengths, after cropping."""
        most = self.max_samples or max(lengths)
        return min(most, *lengths) if self.to_shortest else most

    def start(self, key: Key | None, length: int, limit: int) -> int:
        """Where in a clip of `length` samples its crop of `limit` begins."""
        if length <= limit:
            return 0
        return int(torch.randint(length - limit + 1, (), generator=generator_of("crop", self.seed, key)))


def generator_of(purpose: str, seed: int, key: Any) -> torch.Generator | None:
    """What is random about one sample is a function of (seed, epoch, index); without a key, of torch's generator."""
    return None if key is None else torch.Generator().manual_seed(derived_seed(purpose, seed, *key))
