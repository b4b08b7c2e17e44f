"""Batches of clips: masks score no padding and hide alike, labels are the letters of the transcripts."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from clips import CONVS
from golden_case import GOLDEN
from torch import Tensor

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


def run_lengths(masks: Tensor) -> list[list[int]]:
    return [[len(list(run)) for hidden, run in itertools.groupby(row) if hidden] for row in masks.tolist()]


@pytest.mark.parametrize("prob", [0.25, 0.5])
def test_a_batch_hides_as_much_as_released_in_whole_spans(prob: float) -> None:
    official = json.loads((GOLDEN / "mask_statistics_ctc.json").read_text())["stats"]
    channels = official[f"channels 768 prob {prob} len 64 batch 16"]
    time = official[f"time 300 prob {0.5 if prob == 0.25 else 0.65} len 10 batch 16"]
    collate = TranscriptCollator(["<blank>", "|"], 768, time["mask_prob"], 10, prob, 64, ((4, 320, 320),))
    clips = [{"inputs": torch.zeros(300 * 320), "key": (0, number), "text": ""} for number in range(30 * 16)]
    batches = [collate(clips[start : start + 16]) for start in range(0, len(clips), 16)]
    for name, reference, span in (("mask", time, 10), ("channel_mask", channels, 64)):
        masks = torch.stack([batch[name].reshape(16, -1) for batch in batches])  # type: ignore[literal-required]
        counts = masks.sum(dim=2).double()
        assert (counts == counts[:, :1]).all(), "all rows of a batch hide the same number"
        error = reference["std_count"] * (1 / 30 + 1 / reference["batches"]) ** 0.5
        assert float(counts[:, 0].mean()) == pytest.approx(reference["mean_count"], abs=3 * error + 1e-3)
        runs = run_lengths(masks.flatten(0, 1))
        assert all(sum(run < span for run in row) <= 1 for row in runs), "one span at most is cut"
        assert sum(map(sum, runs)) / sum(map(len, runs)) > 1.8 * reference["run_length_mean"], "officially they break"


def test_masks_of_fine_tuning_follow_from_seed_epoch_and_batch() -> None:
    clips = [{"inputs": torch.zeros(40000), "key": (3, number), "text": ""} for number in range(8)]
    options = (["<blank>", "|"], 48, 0.65, 10, 0.5, 64, CONVS, 7)
    for share in ("smallest", "expected"):
        collate = TranscriptCollator(*options, mask_share=share)  # type: ignore[arg-type]
        first, again = collate(clips), TranscriptCollator(*options, mask_share=share)(clips)  # type: ignore[arg-type]
        assert torch.equal(first["mask"], again["mask"])
        assert torch.equal(first["channel_mask"], again["channel_mask"])
        assert torch.equal(collate(clips[:1])["mask"][0], first["mask"][0]) == (share == "expected")
    with pytest.raises(ValueError, match="mask_share 'half': permitted are 'smallest', 'expected'"):
        TranscriptCollator(*options, mask_share="half")  # type: ignore[arg-type]
