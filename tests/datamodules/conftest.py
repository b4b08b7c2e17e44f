"""What tests of several kinds of data read: a tokenizer of nearly 300 ids, and tables of pictures to stream."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from streams import FILES, ROWS

from d2v_lightning.commands.tokenizer import save_tokenizer, train_tokenizer
from datamodules.text.sources import FileSource

SENTENCES = ["the cat sat on the mat", "a dog ran, and the cat slept", "no dog sat on the cat", "rain fell on the hat"]


@pytest.fixture(scope="session")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Directory of a byte-level BPE with RoBERTa's special tokens."""
    folder = tmp_path_factory.mktemp("bpe")
    (folder / "text.txt").write_text("\n".join(SENTENCES * 20))
    save_tokenizer(train_tokenizer(FileSource(str(folder / "text.txt")), 300), folder / "made")
    return str(folder / "made")


@pytest.fixture(scope="module")
def picture_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables whose row i is a picture of brightness 10 i and class i % 3; row 5 is broken."""
    import datasets

    folder = tmp_path_factory.mktemp("stream")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    path = folder / "tables"
    pictures: list[Any] = [Image.fromarray(np.full((8, 8), 10 * i, np.uint8)) for i in range(ROWS)]
    pictures[5] = {"bytes": b"broken", "path": "five.png"}
    table = datasets.Dataset.from_dict({"image": pictures, "label": [i % 3 for i in range(ROWS)]}, features=features)
    path.mkdir()
    for number in range(FILES):
        table.shard(FILES, number).to_parquet(path / f"train-{number}.parquet")
    table.to_parquet(path / "validation-0.parquet")
    return path


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` waits five seconds after each pass over parquet, for pyarrow's threads; these passes have 24 rows."""
    monkeypatch.setattr("datasets.iterable_dataset.time.sleep", lambda seconds: None)
