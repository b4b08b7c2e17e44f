"""A small tree of pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
from pictures import CLASSES, picture


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Twelve training, six validation and six test pictures of three classes."""
    for split, number in (("train", 4), ("val", 2), ("test", 2)):
        for place, name in enumerate(CLASSES):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(number):
                picture(100 * place + i + 1000 * number).save(tmp_path / split / name / f"{i}.png")
    return tmp_path
