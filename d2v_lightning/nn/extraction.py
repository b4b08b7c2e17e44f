"""Features of the samples of a batch, also of recordings that come in windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from d2v_lightning.nn.backbone import Backbone
from d2v_lightning.nn.windows import Joined, exact_padding
from d2v_lightning.types import Batch


class Extraction:
    """What chosen blocks say about each sample. Its neighbours in the batch, and padding, change nothing but the rounding.

    Args:
        layers: blocks from 0, or from the end by negative numbers.
        frames: every patch, frame or token instead of their mean.
    """

    def __init__(self, layers: Sequence[int] = (-1,), frames: bool = False) -> None:
        self.layers, self.frames = list(layers), frames
        self._joined = Joined()

    def clear(self) -> None:
        """To be called where a run begins."""
        self._joined.clear()

    def __call__(self, backbone: Backbone, batch: Batch) -> tuple[Tensor | None, list[Tensor]]:
        """The "index" (R,) of the samples that are complete, and (L, D) for each of them, or (L, N, D) with `frames`.

        That is every sample of a batch, but for a recording that comes in windows, which is complete with its last one.
        """
        with exact_padding(backbone):
            found = backbone.features(batch["inputs"], batch.get("padding_mask"), self.layers)
        samples = torch.stack(found.layers, dim=2)  # (B, N, L, D)
        if "keep" not in batch:
            rows = [self._row([row[:length]]) for row, length in zip(samples, found.lengths.tolist(), strict=True)]
            return batch.get("index"), rows
        whole: dict[int, Any] = dict(self._joined.add(batch, list(samples.cpu())))
        return torch.tensor(list(whole), dtype=torch.int64), [self._row(pieces) for pieces in whole.values()]

    def _row(self, pieces: Sequence[Tensor]) -> Tensor:
        """(n, L, D) of each piece to (L, D), the mean over all, or (L, N, D)."""
        if self.frames:
            return torch.cat(list(pieces)).transpose(0, 1)
        return torch.stack([piece.sum(dim=0) for piece in pieces]).sum(dim=0) / sum(map(len, pieces))
