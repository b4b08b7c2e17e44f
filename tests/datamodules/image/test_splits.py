"""Splits: only what a stage reads is opened and checked, and classes have the same number in all of them."""

from __future__ import annotations

import unicodedata
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pictures import of_tree, ready
from PIL import Image

from d2v_lightning import Data2Vec, ImageClassifier
from d2v_lightning.support.errors import UserError
from datamodules import ImageDataModule
from datamodules.image.sources import DigitsSource, FolderSource, SubsetSource
from datamodules.image.splits import Splits, hold_out, open_folder


def saved(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), (shade, 9, 9)).save(path)


def module(**arguments: Any) -> ImageDataModule:
    usual = {"image_size": 16, "patch_size": 4, "num_channels": 3, "batch_size": 2, "num_workers": 0}
    return ImageDataModule(**{**usual, **arguments})


@pytest.fixture
def hub(tmp_path: Path) -> Any:
    """Writes a data set with the labels given for each split, and returns its folder."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()

    def write(label: Any, **splits: list[Any]) -> str:
        kinds = datasets.Features({"image": datasets.Image(), "label": label})
        tables = {
            name: datasets.Dataset.from_dict(
                {"image": [Image.new("RGB", (16, 16), (20 * n, 9, 9)) for n in range(len(labels))], "label": labels},
                features=kinds,
            )
            for name, labels in splits.items()
        }
        datasets.DatasetDict(tables).save_to_disk(tmp_path / "hub")
        return str(tmp_path / "hub")

    return write


@pytest.mark.parametrize("withheld", [-1, None])
def test_withheld_test_labels_matter_to_the_test_only(withheld: int | None, hub: Any) -> None:
    datasets = pytest.importorskip("datasets")
    names = datasets.ClassLabel(names=["cat", "dog"])
    folder = hub(names, train=[0, 1] * 4, validation=[0, 1], test=[withheld] * 2)
    for task in ("pretrain", "classify"):
        data = module(dataset=folder, task=task)
        data.setup("fit")
        assert "labels" in next(iter(data.train_dataloader()))
    with pytest.raises(UserError, match=r"2 of 2 labels of the test split of .* are withheld \(-1 or null\)"):
        data.setup("test")
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    assert batch["index"].tolist() == [0, 1]
    assert "labels" not in batch


def test_withheld_training_labels_are_refused_by_fine_tuning_only(hub: Any) -> None:
    datasets = pytest.importorskip("datasets")
    folder = hub(datasets.ClassLabel(names=["cat", "dog"]), train=[0, 1, -1, 0], validation=[0, 1])
    data = module(dataset=folder)
    data.setup("fit")
    assert "labels" not in next(iter(data.train_dataloader()))
    with pytest.raises(UserError, match=r"1 of 4 labels of the train split of .* are withheld"):
        module(dataset=folder, task="classify").setup("fit")


def test_a_flat_test_folder_does_not_stop_fine_tuning(tmp_path: Path) -> None:
    for name in ("train/cat/1", "train/dog/2", "val/cat/3", "val/dog/4", "test/5"):
        saved(tmp_path / f"{name}.png")
    data = module(root=str(tmp_path), task="classify")
    data.setup("fit")
    with pytest.raises(UserError, match=r"5\.png lies in no class folder"):
        data.setup("test")


def test_both_ways_to_write_an_accent_are_one_class(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    for name in (f"train/{composed}/1", "train/dog/2", f"train/{decomposed}/3", f"val/{decomposed}/4", "val/dog/5"):
        saved(tmp_path / f"{name}.png")
    splits = open_folder(tmp_path, labelled=True)
    assert splits["train"].class_names == splits["val"].class_names == [composed, "dog"]
    assert splits["train"].labels == [0, 0, 1]
    assert splits["val"].labels == [0, 1]


def test_what_a_folder_of_classes_holds_besides_is_said(tmp_path: Path) -> None:
    for name in ("train/cat/1", "train/.hidden/2", "train/__MACOSX/3"):
        saved(tmp_path / f"{name}.png")
    (tmp_path / "train/emu").mkdir()
    (tmp_path / "train/kitty").symlink_to("cat")
    with (
        pytest.warns(UserWarning, match=r"1 folder\(s\) have a second name.*kitty is .*cat"),
        pytest.warns(UserWarning, match=r"1 folder\(s\) without pictures are no classes: emu"),
    ):
        source = FolderSource(tmp_path / "train", labelled=True)
    assert (source.class_names, source.labels) == (["cat"], [0])
    saved(tmp_path / "val/cat/4.png")
    with pytest.raises(UserError, match="has one class only, cat"):
        module(root=str(tmp_path), task="classify").setup("fit")


def test_splits_that_are_not_read_or_not_apart_are_said(tmp_path: Path) -> None:
    for name in ("train/a/1", "train/b/2", "valid/a/3", "valid/b/4"):
        saved(tmp_path / f"{name}.png")
    (tmp_path / "val").symlink_to("train")
    with (
        pytest.warns(UserWarning, match="has val and valid: val is the val split, the others are not read"),
        pytest.warns(UserWarning, match=r"train and .*val are the same folder"),
    ):
        assert set(open_folder(tmp_path, labelled=True)) == {"train", "val"}


def test_classes_of_a_folder_without_training_pictures_are_the_models(tmp_path: Path) -> None:
    saved(tmp_path / "test/dog/1.png")
    splits = open_folder(tmp_path, labelled=True, class_names=["cat", "dog"])
    assert splits["test"].labels == [1]


def test_a_split_is_opened_when_it_is_asked_for() -> None:
    def open_one(place: str, class_names: object) -> Any:
        opened.append(place)
        return SimpleNamespace(class_names=["a"], given=class_names)

    opened: list[str] = []
    splits = Splits({"train": "there", "val": "here", "test": "nowhere"}, open_one)
    assert "test" in splits
    assert list(splits) == ["train", "val", "test"]
    assert not opened
    assert splits["val"] is splits["val"]
    assert splits["val"].given == ["a"]  # type: ignore[attr-defined]
    assert opened == ["there", "here"]


def test_tables_without_pictures_are_one_line(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    for name, column, message in (
        ("numbers", [1, 2], "image_column 'image' holds .*int64.*: pictures, their bytes or their paths are needed"),
        ("empty", [], "is no data set that can be read"),
    ):
        (tmp_path / name).mkdir()
        datasets.Dataset.from_dict({"image": column}).to_parquet(tmp_path / name / "train-0.parquet")
        with pytest.raises(UserError, match=message):
            module(dataset=str(tmp_path / name), image_column="image").setup("fit")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(UserError, match=r"broken\.parquet is no data set that can be read"):
        module(dataset=str(tmp_path / "broken.parquet")).setup("fit")


def test_other_names_of_classes_than_the_models_are_said(tmp_path: Path) -> None:
    for name in ("test/cat/1", "test/emu/2"):
        saved(tmp_path / f"{name}.png")
    data = module(root=str(tmp_path), task="classify")
    data.setup("test")
    backbone = Data2Vec.from_recipe("digits").backbone
    for names, said in ((["cat", "dog"], 1), (["cat", "emu"], 0)):
        model = ImageClassifier(2, backbone=backbone, mixup=0, cutmix=0, class_names=names)
        model._trainer = SimpleNamespace(datamodule=data)  # type: ignore[assignment]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.setup("test")
        found = [str(warning.message) for warning in caught if "classes have other names" in str(warning.message)]
        assert len(found) == said


def test_held_out_pictures_are_not_trained_on(tree: Path) -> None:
    import shutil

    shutil.rmtree(tree / "val")
    data = ready(of_tree(tree, task="classify", val_fraction=0.25))
    train, val = data._source("train"), data._source("val")
    names = [{source.name(i) for i in range(len(source))} for source in (train, val)]
    assert (len(names[0]), len(names[1])) == (9, 3)
    assert not names[0] & names[1]


def test_a_few_batches_of_held_out_pictures_hold_all_classes() -> None:
    digits = DigitsSource("train")
    by_class = SubsetSource(
        digits, sorted(range(len(digits)), key=digits.labels.__getitem__)
    )  # as in a tree of folders
    held_out = hold_out({"train": by_class}, 0.3, seed=0)["val"]
    assert len(set(held_out.labels[:64])) == 10
