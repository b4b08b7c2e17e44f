"""Batches of clips: masks score no padding and hide alike, labels are the letters of the transcripts."""

from __future__ import annotations

import pytest
import torch
from clips import CONVS

from d2v_lightning.nn.encoders.audio import feature_lengths
from datamodules import SpanMaskCollator, TranscriptCollator


@pytest.mark.parametrize(("ratio", "masks"), [(None, 1), (0.5, 4)])
def test_padding_is_never_scored_and_rows_stay_equal_for_several_masks(ratio: float | None, masks: int) -> None:
    collate = SpanMaskCollator(
        mask_length=5, mask_ratio=ratio, num_masks=masks, conv_layers=CONVS, crop_to_shortest=False
    )
    samples = [{"inputs": torch.randn(size), "key": (0, size), "index": size} for size in (40000, 30000, 9000)]
    batch = collate(samples)
    frames = feature_lengths(torch.tensor([40000, 30000, 9000]), CONVS)
    length = batch["mask"].shape[2]
    columns, rows = batch["hidden"] % length, batch["hidden"] // (masks * length)
    assert (columns < frames[rows]).all()
    if masks > 1:
        assert len(set(batch["mask"].sum(dim=-1).flatten().tolist())) == 1
        assert batch["visible"].shape[:2] == (3, masks)
    again = collate(samples[2:])
    count = int(frames[2])
    assert torch.equal(again["mask"][0, :, :count], batch["mask"][2, :, :count]), (
        "a mask is a function of the clip alone"
    )
    assert not torch.equal(collate([{**samples[2], "key": (1, 9000)}])["mask"], again["mask"])


def test_of_a_clip_of_few_frames_something_stays_visible() -> None:
    collate = SpanMaskCollator(mask_length=5, mask_ratio=0.9, num_masks=2, conv_layers=CONVS, crop_to_shortest=False)
    short = next(size for size in range(400, 4000) if feature_lengths(size, CONVS) == 2)
    batch = collate([{"inputs": torch.randn(size), "key": (0, size), "index": size} for size in (40000, short)])
    assert batch["mask"][1, :, :2].sum(dim=-1).tolist() == [1, 1]
    assert len(set(batch["mask"].sum(dim=-1).flatten().tolist())) == 1


def test_time_and_channel_masks_and_labels() -> None:
    collate = TranscriptCollator(["<blank>", "|", "A", "B"], 48, 0.5, 10, 0.25, 64, CONVS)
    samples = [
        {"inputs": torch.randn(n), "key": (0, n), "index": 0, "text": text}
        for n, text in ((40000, "AB  A"), (20000, "B"))
    ]
    batch = collate(samples)
    assert batch["labels"].tolist() == [[2, 3, 1, 2], [3, 0, 0, 0]]
    assert batch["label_lengths"].tolist() == [4, 1]
    frames = feature_lengths(20000, CONVS)
    assert not batch["mask"][1, 0, frames:].any()
    assert batch["mask"][1, 0, :frames].any()
    assert 0 < batch["channel_mask"][0].sum() < 24
