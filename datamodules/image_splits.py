"""The train, val and test splits of a folder of pictures, a Hugging Face data set or scikit-learn's digits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from d2v_lightning.errors import NotFoundError, UserError
from datamodules.image_sources import (
    SPLIT_NAMES,
    DigitsSource,
    FolderSource,
    HuggingFaceSource,
    ImageSource,
    SubsetSource,
    open_table,
    split_folder,
)
from datamodules.samplers import derived_seed

Split = Literal["train", "val", "test"]
SPLITS: Sequence[Split] = ("train", "val", "test")


def open_folder(root: Path, labelled: bool) -> dict[Split, ImageSource]:
    """The splits of a folder, those that it has; without any, and where classes do not matter, all of it is train.

    Args:
        root: with a folder a split, see `SPLIT_NAMES`.
        labelled: the first level of folders in a split must name classes; otherwise it may.

    Raises:
        FileNotFoundError: there is no such folder, or no picture in a split.
        ValueError: see `FolderSource`.
    """
    if not root.is_dir():
        raise NotFoundError(f"{root} is not a folder: point `root` to a folder of pictures")
    folders = {split: folder for split in SPLITS if (folder := split_folder(root, split)) is not None}
    if not folders and not labelled:
        folders = {"train": root}
    sources: dict[Split, ImageSource] = {}
    class_names: Sequence[str] | None = None
    for split, folder in folders.items():
        source = FolderSource(folder, True if labelled else None, class_names)
        class_names = source.class_names or class_names
        sources[split] = source
    return sources


def open_dataset(
    dataset: str, config: str | None, image_column: str | None, label_column: str | None, labelled: bool
) -> dict[Split, ImageSource]:
    """The splits of "digits" or of a Hugging Face data set, those that it has; arguments as in `ImageDataModule`.

    Raises:
        FileNotFoundError: there is no such data set.
        ValueError: a column is missing or not unique, or the training split lacks a class.
    """
    if dataset == "digits":
        return {split: DigitsSource(split) for split in SPLITS}
    tables: Mapping[str, Any] = open_table(dataset, config, streaming=False)
    sources: dict[Split, ImageSource] = {}
    class_names: Sequence[str] | None = None
    for split, table in _by_split(tables).items():
        source = HuggingFaceSource(table, image_column, label_column, class_names)
        class_names = class_names or source.class_names
        if labelled and source.labels is None:
            raise UserError(f"no column of classes among {', '.join(table.features)}: set label_column")
        _refuse_new_classes(source, sources.get("train"), split)
        sources[split] = source
    return sources


def open_streams(dataset: str, config: str | None) -> dict[Split, Any]:
    """The splits of a Hugging Face data set as streams, `datasets.IterableDataset`, those that it has."""
    return _by_split(open_table(dataset, config, streaming=True))


def hold_out(sources: dict[Split, ImageSource], fraction: float, seed: int) -> dict[Split, ImageSource]:
    """The splits with `fraction` of train as val, chosen by the seed alone and in the order drawn: a few batches of it are
    a fair sample.

    Raises:
        ValueError: nothing would be left to train on.
    """
    whole = sources["train"]
    order = sorted(range(len(whole)), key=lambda place: derived_seed("held out", seed, place))
    held_out = max(1, round(fraction * len(whole)))
    if held_out >= len(whole):
        raise UserError(f"val_fraction {fraction} of {len(whole)} pictures leaves nothing to train on")
    return {
        **sources,
        "val": SubsetSource(whole, order[:held_out]),
        "train": SubsetSource(whole, sorted(order[held_out:])),
    }


def _by_split(tables: Mapping[str, Any]) -> dict[Split, Any]:
    return {
        split: next(tables[name] for name in SPLIT_NAMES[split] if name in tables)
        for split in SPLITS
        if any(name in tables for name in SPLIT_NAMES[split])
    }


def _refuse_new_classes(source: ImageSource, train: ImageSource | None, split: str) -> None:
    if source.labels is None or train is None or train.labels is None:
        return
    if unknown := sorted(set(source.labels) - set(train.labels)):
        names = ", ".join(source.class_names[number] for number in unknown)
        raise UserError(
            f"class {names} is in the {split} split but not in the training split: add training pictures or remove it"
        )
