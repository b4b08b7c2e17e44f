"""Which tokens of a text are hidden: as many as officially, whole words where asked, and no more than there are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from datamodules.text.masks import num_text_masked, text_mask, whole_word_mask

STATISTICS = json.loads((Path(__file__).parents[2] / "golden" / "mask_statistics_spans.json").read_text())["stats"]


@pytest.mark.parametrize("length", [128, 512])
def test_counts_are_the_official_ones(length: int) -> None:
    official = STATISTICS[f"random_masking d2v2 text base: prob .48 len 1 L={length}"]
    assert num_text_masked(length, 0.48, 1) == official["min_masked_in_row"] == official["max_masked_in_row"]
    official = STATISTICS[f"MaskTokensDataset d2v1 text base: prob .35 span 4 L={length}"]
    # Ours is the mean over all rows: three standard errors (.0002 to .0005) and half a token of rounding.
    assert num_text_masked(length, 0.35, 4) == pytest.approx(
        official["mean_masked_fraction"] * length, abs=0.5 + 0.001 * length
    )
    assert num_text_masked(length, 0.15, 1) == pytest.approx(0.15 * length, abs=1)


@pytest.mark.parametrize("mask_length", [1, 4])
@pytest.mark.parametrize("seed", range(5))
def test_whole_words_are_hidden(mask_length: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    starts = torch.rand(200, generator=generator) < 0.4
    starts[0] = True
    words = starts.cumsum(dim=0)
    for count in (1, 30, 61, 199):
        mask = whole_word_mask(starts, count, mask_length, generator)
        assert int(mask.sum()) == count
        broken = [word for word in words.unique() if 0 < mask[words == word].sum() < (words == word).sum()]
        assert len(broken) <= 1


def test_a_mask_of_everything_or_nothing() -> None:
    maskable = torch.tensor([False, True, True, False])
    assert text_mask(maskable, 5, 4).tolist() == maskable.tolist()
    assert not text_mask(maskable, 0, 4).any()
