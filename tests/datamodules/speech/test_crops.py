"""Of a long recording a batch takes a part: which one follows from seed, epoch and clip, and only that part is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import module, write

from d2v_lightning.nn.encoders.audio import feature_lengths
from datamodules.speech.sources import SpeechSource
from datamodules.speech.waveform import (
    normalise,
)


def test_of_a_long_recording_only_the_crop_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, rate in enumerate((16000, 22050)):
        write(tmp_path / f"{number}.wav", 60.0, rate, seed=number)
    options: dict[str, Any] = {"train_split": "", "max_seconds": 3.0, "batch_samples": 96_000}
    read: list[tuple[int, int | None]] = []
    reader = SpeechSource.read

    def counted(source: SpeechSource, index: int, begin: int = 0, end: int | None = None) -> Any:
        read.append((begin, end))
        return reader(source, index, begin, end)

    monkeypatch.setattr(SpeechSource, "read", counted)
    for normalised in (False, True):
        data = module(tmp_path, normalize=normalised, **options)
        loader = data.train_dataloader()
        (batch,) = loader
        source = data._sources["train"]
        assert batch["inputs"].shape == (2, 48_000)
        for row, index in zip(batch["inputs"].numpy(), batch["index"].tolist(), strict=True):
            whole = reader(source, index)
            start = loader.data.crops.start((0, index), len(whole), 48_000)  # type: ignore[attr-defined]
            crop = whole[start : start + 48_000]
            if normalised:
                np.testing.assert_allclose(row, normalise(crop), atol=0.05)
                assert np.corrcoef(row, crop)[0, 1] > 0.99999
            elif index == 0:
                np.testing.assert_array_equal(row, crop)
            else:
                np.testing.assert_allclose(row, crop, rtol=0, atol=2e-6)
        (again,) = module(tmp_path, normalize=normalised, **options, num_workers=1).train_dataloader()
        assert torch.equal(batch["inputs"], again["inputs"])
        assert torch.equal(batch["mask"], again["mask"])
    assert [(end or 0) - begin for begin, end in read] == [48_000] * 2 + [40 * 16_000] * 2


def test_published_batches_are_cropped_to_their_shortest_clip_and_hide_alike(libri: Path) -> None:
    data = module(libri)
    batches = list(data.train_dataloader())
    assert len(batches) > 1
    for batch in batches:
        assert "padding_mask" not in batch
        frames = feature_lengths(batch["inputs"].shape[1])
        counts = batch["mask"].sum(dim=-1)
        assert (counts == counts[0, 0]).all()
        assert counts[0, 0] / frames == pytest.approx(0.49, abs=0.02)
        assert len(batch["hidden"]) == int(counts.sum())
        clip = batch["inputs"][0]
        assert clip.std() == pytest.approx(1.0, abs=0.1)
