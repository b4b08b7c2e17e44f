"""Where pictures come from: folders, Hugging Face tables and digits, with their labels or the reason why there is none."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from pictures import CLASSES, DIGITS, content, of_tree, picture, ready
from PIL import Image

from d2v_lightning.support.errors import UserError
from datamodules import ImageDataModule
from datamodules.image.sources import PictureFiles, number_labels, open_cell
from datamodules.shared.files import FolderGoneError


def test_digits_are_split_once_and_for_all() -> None:
    data = ready(ImageDataModule(**DIGITS, task="classify", rand_augment=None, random_erasing=0.0), "fit")
    sizes = [len(data._source(split)) for split in ("train", "val", "test")]
    assert sizes == [1297, 250, 250]
    places = [set(data._source(split)._places) for split in ("train", "val", "test")]  # type: ignore[attr-defined]
    assert set.union(*places) == set(range(1797))
    assert sorted(places[2])[:5] == [0, 1, 4, 11, 15]
    assert data.class_names == [str(digit) for digit in range(10)]


def test_pretraining_takes_any_tree(tmp_path: Path) -> None:
    for i, place in enumerate(("a/b/c", "a", ".", "d")):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        picture(i).save(tmp_path / place / f"{i}.jpg")
    (tmp_path / "readme.txt").write_text("not a picture")
    data = ready(of_tree(tmp_path))
    batch = next(iter(data.train_dataloader()))
    assert sorted(batch["index"].tolist()) == [0, 1, 2, 3]
    assert "labels" not in batch
    assert data.val_dataloader() == []


@pytest.mark.parametrize("form", ["parquet", "folder of parquet", "save_to_disk"])
def test_hugging_face_data_sets(form: str, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features({"photo": datasets.Image(), "animal": datasets.ClassLabel(names=list(CLASSES))})
    rows = {"photo": [picture(i) for i in range(6)], "animal": [0, 1, 2, 0, 1, 2]}
    table = datasets.Dataset.from_dict(rows, features=features)
    if form == "parquet":
        path = tmp_path / "pictures.parquet"
        table.to_parquet(path)
    elif form == "folder of parquet":
        path = tmp_path / "tables"
        path.mkdir()
        table.to_parquet(path / "train-00000.parquet")
        table.to_parquet(path / "validation-00000.parquet")
    else:
        path = tmp_path / "saved"
        datasets.DatasetDict({"train": table, "validation": table}).save_to_disk(path)
    task = "pretrain" if form == "parquet" else "classify"
    data = ready(of_tree(None, dataset=str(path), task=task, batch_size=6, crop_share=1.0))
    batch = next(iter(data.train_dataloader()))
    assert batch["labels"].tolist() == [index % 3 for index in batch["index"].tolist()]
    assert data.class_names == list(CLASSES)
    with pytest.raises(ValueError, match="image_column 'image': the data set has photo, animal"):
        ready(of_tree(None, dataset=str(path), image_column="image"))


def test_cells_without_a_picture_have_a_reason() -> None:
    good = Image.new("L", (3, 2), 7)
    assert open_cell({"bytes": content(good), "path": None}).getpixel((0, 0)) == 7
    with pytest.raises(FileNotFoundError) as error:
        open_cell({"bytes": None, "path": "/never/there.png"})
    assert not isinstance(error.value, FolderGoneError)
    for cell in (None, {"bytes": None, "path": None}, {"bytes": b"", "path": ""}, {"path": None}):
        with pytest.raises(UserError, match="there is no picture in this row"):
            open_cell(cell)
    with pytest.raises(UserError, match="this row holds int instead of a picture"):
        open_cell(7)


def test_a_missing_file_is_unreadable_and_a_missing_folder_ends_the_run(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("L", (3, 2)).save(tmp_path / name)
    source = PictureFiles([str(tmp_path / "a.png"), str(tmp_path / "b.png")])
    (tmp_path / "a.png").unlink()
    with pytest.raises(FileNotFoundError) as error:
        source.picture(0)
    assert not isinstance(error.value, FolderGoneError)
    (tmp_path / "b.png").unlink()
    with pytest.raises(FolderGoneError, match="is empty, though it held data when the run started"):
        source.picture(1)
    tmp_path.rmdir()
    with pytest.raises(FolderGoneError, match=r"cannot be read \(No such file or directory\)"):
        source.picture(1)


def test_labels_are_numbered_by_the_classes_of_the_training_split() -> None:
    assert number_labels([2, 0], ("a", "b", "c"), ()) == (["a", "b", "c"], [2, 0], 0)
    assert number_labels([0, 1], ("dog", "cat"), ("cat", "dog", "emu")) == (["cat", "dog", "emu"], [1, 0], 0)
    assert number_labels(["dog", "cat"], (), ()) == (["cat", "dog"], [1, 0], 0)
    assert number_labels([0.5, float("inf")], (), ()) == (["0.5", "inf"], [0, 1], 0)
    assert number_labels([0.0, 1.0], (), ()) == (["0", "1"], [0, 1], 0)
    assert number_labels([float("nan"), 1.0, None, -1], (), ()) == (["0", "1"], None, 3)
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    assert number_labels([decomposed], (), (composed,)) == ([composed], [0], 0)
    with pytest.raises(UserError, match=r"label 3 in a data set of 2 classes: permitted is 0\.\.1"):
        number_labels([0, 3], ("a", "b"), ())
    with pytest.raises(UserError, match="class emu is not in the training split"):
        number_labels([0], ("emu",), ("cat", "dog"))
