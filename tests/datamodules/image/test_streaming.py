"""Pictures of a stream: a broken one is named and replaced, and evaluation is in order."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
from streams import ROWS, rows_of, stream

pytestmark = pytest.mark.usefixtures("no_waiting")


def test_broken_pictures_of_a_stream_are_named_and_evaluation_is_in_order(picture_rows: Path) -> None:
    data = stream(picture_rows, num_workers=2)
    loader = data.val_dataloader()
    with pytest.warns(UserWarning, match="1 unreadable.*five.png"):
        batches = list(loader)
    assert [row for batch in batches for row in rows_of(batch)] == [0, 1, 2, 3, 4, 6, *range(6, ROWS)]
    assert data.class_names == ["a", "b", "c"]
    with pytest.raises(ValueError, match=r"batch_size 3 x 1 device\(s\) is more than 2 pictures of an epoch"):
        stream(picture_rows, samples_per_epoch=2).train_dataloader()
    with pytest.raises(ValueError, match="a stream cannot be read at will"):
        data.probe_dataloaders()


def test_a_broken_last_row_of_an_evaluation_is_replaced(picture_rows: Path, tmp_path: Path) -> None:
    table = datasets.load_dataset("parquet", data_files=str(picture_rows / "validation-0.parquet"), split="train")
    table = (
        table.cast_column("image", datasets.Image(decode=False))
        .select([3, 4, 5])
        .cast_column("image", datasets.Image())
    )
    table.to_parquet(tmp_path / "train-0.parquet")
    table.to_parquet(tmp_path / "validation-0.parquet")
    with pytest.warns(UserWarning, match="1 unreadable.*five.png"):
        (batch,) = list(stream(tmp_path, samples_per_epoch=3).val_dataloader())  # type: ignore[arg-type]
    assert rows_of(batch) == [3, 4, 4]
    assert batch["repeated"].tolist() == [False, False, True]
