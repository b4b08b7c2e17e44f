"""Lists of samples to batches, with the masks of pre-training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from d2v_lightning.method.masking import block_mask, inverse_block_mask, span_mask
from d2v_lightning.method.positions import hidden_positions, visible_positions
from d2v_lightning.support.errors import UserError
from d2v_lightning.types import Batch
from datamodules.shared.samplers import derived_seed

PUBLISHED_MASKED, PUBLISHED_MIN_BLOCK, PUBLISHED_PATCHES = 120, 16, 196


class ImageCollator:
    """Stacks images, and labels and indices where the samples have them.

    A sample is a dict with "inputs" (C, H, W) and perhaps "label", "index", "key", "unreadable" and "repeated" (from
    `KeyedImages`). It may also be a plain (image, label) tuple, or an image alone.

    Args:
        report_unreadable: pass "unreadable" on, for a `ResumableLoader` to take out and warn of.
    """

    def __init__(self, report_unreadable: bool = False) -> None:
        self.report_unreadable = report_unreadable

    def __call__(self, samples: Sequence[Any]) -> Batch:
        """Samples -> {"inputs" (B, C, H, W) float32, "labels" (B,), "index" (B,)}, and "repeated" (B,) where one is. Samples
        without "inputs" are left out; where all are, nothing but "unreadable" is left."""
        listed = [entry for sample in samples if isinstance(sample, dict) for entry in sample.get("unreadable", ())]
        rows = [row for sample in samples if "inputs" in (row := _as_dict(sample))]
        if not rows:
            return {"unreadable": listed}  # type: ignore[typeddict-unknown-key]
        batch: dict[str, Any] = {"inputs": torch.stack([row["inputs"] for row in rows]).float()}
        for name, field in (("index", "index"), ("label", "labels")):
            if all(row.get(name) is not None for row in rows):
                batch[field] = torch.tensor([int(row[name]) for row in rows])
        if any(repeated := [bool(row.get("repeated")) for row in rows]):
            batch["repeated"] = torch.tensor(repeated)
        if self.report_unreadable and listed:
            batch["unreadable"] = listed
        return batch  # type: ignore[return-value]  # the loader takes the one foreign key out


class MaskCollator(ImageCollator):
    """Stacks images and draws masks for them; a subclass says how one is drawn.

    The mask of a sample with a key (epoch, index) is a pure function of (seed, epoch, index). Samples without keys, as
    from a plain data set in a plain `DataLoader`, get masks from torch's global generator.
    """

    def __init__(self, num_masks: int, seed: int, report_unreadable: bool) -> None:
        super().__init__(report_unreadable)
        if num_masks < 1:
            raise UserError(f"num_masks {num_masks}: permitted is 1 or more")
        self.num_masks, self.seed = num_masks, seed
        self._mask(torch.Generator())  # refuses wrong arguments now, not in a worker process

    def __call__(self, samples: Sequence[Any]) -> Batch:
        """Samples -> what `ImageCollator` gives, "mask" (B, M, N) bool, True = hidden, "hidden" (P,) int64, and with M > 1
        "visible" (B, M, V) int64."""
        batch = super().__call__(samples)
        if "inputs" not in batch:
            return batch
        read = [sample for sample in samples if not isinstance(sample, dict) or "inputs" in sample]
        batch["mask"] = torch.stack([self._masks(sample) for sample in read])
        batch["hidden"] = hidden_positions(batch["mask"])
        if self.num_masks > 1:
            batch["visible"] = visible_positions(batch["mask"])
        return batch

    def _masks(self, sample: Any) -> Tensor:
        """(M, N) for one sample."""
        key = sample.get("key") if isinstance(sample, dict) else None
        generator = None
        if key is not None:
            generator = torch.Generator().manual_seed(derived_seed("mask", self.seed, *key))
        return torch.stack([self._mask(generator) for _ in range(self.num_masks)])

    def _mask(self, generator: torch.Generator | None) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define _mask(generator)")


class BlockMaskCollator(MaskCollator):
    """Stacks images and draws block masks for them (1.0), the same number of hidden patches in every row.

    Args:
        grid: (rows, columns) of patches, N = rows x columns.
        num_masked: hidden patches per row. By default 120 of 196, as data2vec 1.0's released command, scaled to N.
        mask_ratio: the same as a share of N; give one of the two.
        min_block: smallest block; by default 16 of 196 scaled to N, at least 2.
        max_block: largest block, see `block_mask`.
        min_aspect: see `block_mask`.
        num_masks: M, masks per sample.
        seed: of the masks.
        report_unreadable: see `ImageCollator`.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        num_masked: int | None = None,
        mask_ratio: float | None = None,
        min_block: int | None = None,
        max_block: int | None = None,
        min_aspect: float = 0.3,
        num_masks: int = 1,
        seed: int = 0,
        report_unreadable: bool = False,
    ) -> None:
        num_patches = grid[0] * grid[1]
        num_masked = _count(num_masked, mask_ratio, PUBLISHED_MASKED / PUBLISHED_PATCHES, num_patches)
        if min_block is None:
            min_block = min(num_masked, max(2, round(PUBLISHED_MIN_BLOCK / PUBLISHED_PATCHES * num_patches)))
        self.grid, self.num_masked = grid, num_masked
        self.min_block, self.max_block, self.min_aspect = min_block, max_block, min_aspect
        super().__init__(num_masks, seed, report_unreadable)

    def _mask(self, generator: torch.Generator | None) -> Tensor:
        return block_mask(self.grid, self.num_masked, generator, self.min_block, self.max_block, self.min_aspect)


class InverseBlockMaskCollator(MaskCollator):
    """Stacks images and hides all but squares of patches (2.0), the same number in every row.

    Args:
        grid: (rows, columns) of patches, N = rows x columns.
        num_masked: hidden patches per row. By default 157 of 196, as data2vec 2.0 Base, scaled to N.
        mask_ratio: the same as a share of N; give one of the two.
        block: side of the visible squares in patches.
        num_masks: M, masks per sample.
        seed: of the masks.
        report_unreadable: see `ImageCollator`.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        num_masked: int | None = None,
        mask_ratio: float | None = None,
        block: int = 3,
        num_masks: int = 16,
        seed: int = 0,
        report_unreadable: bool = False,
    ) -> None:
        self.grid, self.block = grid, block
        self.num_masked = _count(num_masked, mask_ratio, 157 / PUBLISHED_PATCHES, grid[0] * grid[1])
        super().__init__(num_masks, seed, report_unreadable)

    def _mask(self, generator: torch.Generator | None) -> Tensor:
        return inverse_block_mask(self.grid, self.num_masked, self.block, generator)


class SequenceMaskCollator(MaskCollator):
    """Stacks samples of any modality whose encoder makes `num_tokens` of each, and hides spans of tokens in them.

    Samples are those of `ImageCollator`, with "inputs" of any shape, the same for all. Every row hides the same number;
    spans may stick out by half at either end, so that the ends are hidden as often as the middle (2.0 speech).

    Args:
        num_tokens: N, tokens that the encoder makes of a sample.
        num_masked: hidden tokens per row. By default half of them, as data2vec 2.0 for speech, Base.
        mask_ratio: the same as a share of N; give one of the two.
        mask_length: of a span in tokens.
        num_masks: M, masks per sample.
        seed: of the masks.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        num_tokens: int,
        num_masked: int | None = None,
        mask_ratio: float | None = None,
        mask_length: int = 5,
        num_masks: int = 1,
        seed: int = 0,
    ) -> None:
        self.num_tokens, self.mask_length = num_tokens, mask_length
        self.num_masked = _count(num_masked, mask_ratio, 0.5, num_tokens)
        super().__init__(num_masks, seed, report_unreadable=False)

    def _mask(self, generator: torch.Generator | None) -> Tensor:
        return span_mask(self.num_tokens, self.num_masked, self.mask_length, generator, self.mask_length // 2)


def _count(num_masked: int | None, mask_ratio: float | None, published_ratio: float, num_patches: int) -> int:
    """Hidden patches of a row: as given, or as a share of all."""
    if num_masked is not None and mask_ratio is not None:
        raise UserError(f"num_masked {num_masked} and mask_ratio {mask_ratio} say the same thing: give one of them")
    if mask_ratio is not None and not 0 < mask_ratio < 1:
        raise UserError(f"mask_ratio {mask_ratio}: permitted is 0 < mask_ratio < 1")
    if num_masked is not None:
        return num_masked
    return round((published_ratio if mask_ratio is None else mask_ratio) * num_patches)


def _as_dict(sample: Any) -> dict[str, Any]:
    if isinstance(sample, dict):
        return sample
    if isinstance(sample, (tuple, list)):
        return {"inputs": sample[0], "label": sample[1]}
    return {"inputs": sample}
