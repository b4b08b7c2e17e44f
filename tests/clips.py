"""Recordings of noise, and a SpeechDataModule that reads them, for tests of speech."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from datamodules import SpeechDataModule

CONVS = [(8, 10, 5), (8, 8, 8), (8, 8, 8)]


def write(path: Path, seconds: float, rate: int = 16000, seed: int = 0, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.1 * np.random.default_rng(seed).standard_normal(int(seconds * rate))
    soundfile.write(path, wave, rate, **options)
    return path


def module(root: Path, **options: Any) -> SpeechDataModule:
    usual = {"train_split": "train", "batch_samples": 150_000, "num_workers": 0}
    data = SpeechDataModule(root=str(root), **{**usual, **options})
    data.setup("fit")
    return data
