"""A small LibriSpeech."""

from __future__ import annotations

from pathlib import Path

import pytest
from clips import write


@pytest.fixture
def libri(tmp_path: Path) -> Path:
    """LibriSpeech's layout: 12 clips of 2 to 4 seconds in `train`, 3 in `dev`."""
    for split, count, speaker in (("train", 12, 1), ("dev", 3, 2)):
        lines = []
        for number in range(count):
            name = f"{speaker}-9-{number:04d}"
            write(tmp_path / split / str(speaker) / "9" / f"{name}.flac", 2.0 + 2.0 * number / count, seed=number)
            lines.append(f"{name} {'HELLO WORLD'[: 5 + number % 6].strip()}")
        (tmp_path / split / str(speaker) / "9" / f"{speaker}-9.trans.txt").write_text("\n".join(lines) + "\n")
    return tmp_path
