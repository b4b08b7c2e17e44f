"""The train, val and test splits of a folder of pictures, a Hugging Face data set or scikit-learn's digits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from d2v_lightning.flavour import rank_zero_warn
from d2v_lightning.support.errors import NotFoundError, UserError
from datamodules.image.sources import DigitsSource, FolderSource, HuggingFaceSource, ImageSource, SubsetSource
from datamodules.shared.samplers import derived_seed
from datamodules.shared.tables import SPLIT_NAMES, open_table

Split = Literal["train", "val", "test"]
SPLITS: Sequence[Split] = ("train", "val", "test")


class Splits(Mapping[Split, ImageSource]):
    """Splits by name, each opened when it is first asked for: what a stage does not read is not looked at.

    Args:
        places: what is there.
        open_one: opens a place; its second argument are the classes of the training split, or `class_names`.
        class_names: where there is no training split.
    """

    def __init__(
        self,
        places: Mapping[Split, Any],
        open_one: Callable[[Any, Sequence[str] | None], ImageSource],
        class_names: Sequence[str] | None = None,
    ) -> None:
        self._places, self._open_one, self._class_names = dict(places), open_one, class_names
        self._opened: dict[Split, ImageSource] = {}

    def __getitem__(self, split: Split) -> ImageSource:
        if split not in self._opened:
            place = self._places[split]
            self._opened[split] = self._open_one(place, None if split == "train" else self._classes())
        return self._opened[split]

    def __contains__(self, split: object) -> bool:
        return split in self._places

    def _classes(self) -> Sequence[str] | None:
        return (self["train"].class_names if "train" in self._places else self._class_names) or None

    def __iter__(self) -> Iterator[Split]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def open_folder(root: Path, labelled: bool, class_names: Sequence[str] | None = None) -> Splits:
    """The splits of a folder, those that it has; without any, and where classes do not matter, all of it is train.

    Args:
        root: with a folder a split, see `SPLIT_NAMES`.
        labelled: the first level of folders in a split must name classes; otherwise it may.
        class_names: by which classes are numbered where there is no training split.

    Raises:
        FileNotFoundError: there is no such folder. On asking for a split: there is no picture in it.
        ValueError: on asking for a split, see `FolderSource`.
    """
    if not root.is_dir():
        raise NotFoundError(f"{root} is not a folder: point `root` to a folder of pictures")
    names = [name for names in SPLIT_NAMES.values() for name in names if (root / name).is_dir()]
    folders: dict[Split, Path] = {split: root / name for split, name in _split_names(names, str(root)).items()}
    for one, other in combinations(folders, 2):
        if os.path.samefile(folders[one], folders[other]):
            rank_zero_warn(f"{folders[one]} and {folders[other]} are the same folder: {one} and {other} are not apart")
    if not folders and not labelled:
        folders = {"train": root}
    return Splits(folders, lambda folder, names: FolderSource(folder, True if labelled else None, names), class_names)


def open_dataset(dataset: str, config: str | None, image_column: str | None, label_column: str | None) -> Splits:
    """The splits of "digits" or of a Hugging Face data set, those that it has; arguments as in `ImageDataModule`.

    Raises:
        FileNotFoundError: there is no such data set.
        ValueError: on asking for a split: a column is missing or not unique.
    """
    if dataset == "digits":
        return Splits({split: split for split in SPLITS}, lambda split, _: DigitsSource(split))
    tables: Mapping[str, Any] = open_table(dataset, config, streaming=False)
    return Splits(
        _by_split(tables, dataset),
        lambda table, names: HuggingFaceSource(table, image_column, label_column, names),
    )


def require_classes(sources: Mapping[Split, ImageSource], split: Split, where: str) -> None:
    """Raises ValueError where a split is no use for classification: it lacks labels, or training pictures of its classes."""
    source, train = sources[split], sources.get("train")
    if source.labels is None:
        if withheld := getattr(source, "withheld", 0):
            raise UserError(
                f"{withheld} of {len(source)} labels of the {split} split of {where} are withheld (-1 or null):"
                " classification needs them all, choose another split or remove those rows"
            )
        raise UserError(f"no column of classes in {where}: set label_column")
    if len(source.class_names) == 1:
        raise UserError(f"{where} has one class only, {source.class_names[0]}: classification needs two or more")
    if train is None or train.labels is None:
        return
    if unknown := sorted(set(source.labels) - set(train.labels)):
        names = ", ".join(source.class_names[number] for number in unknown)
        raise UserError(
            f"class {names} is in the {split} split but not in the training split: add training pictures or remove it"
        )


def open_streams(dataset: str, config: str | None) -> dict[Split, Any]:
    """The splits of a Hugging Face data set as streams, `datasets.IterableDataset`, those that it has."""
    return _by_split(open_table(dataset, config, streaming=True), dataset)


def hold_out(sources: Mapping[Split, ImageSource], fraction: float, seed: int) -> Splits:
    """The splits with `fraction` of train as val, chosen by the seed alone.

    They stay in the order drawn, so that a few batches of them are a fair sample.

    Raises:
        ValueError: nothing would be left to train on.
    """
    whole = sources["train"]
    order = sorted(range(len(whole)), key=lambda place: derived_seed("held out", seed, place))
    held_out = max(1, round(fraction * len(whole)))
    if held_out >= len(whole):
        raise UserError(f"val_fraction {fraction} of {len(whole)} pictures leaves nothing to train on")
    places: dict[Split, Any] = {**{split: split for split in sources}, "val": order[:held_out]}
    places["train"] = sorted(order[held_out:])
    return Splits(
        places,
        lambda place, _: sources[place] if isinstance(place, str) else SubsetSource(whole, place),  # type: ignore[index]
    )


def _by_split(tables: Mapping[str, Any], where: str) -> dict[Split, Any]:
    return {split: tables[name] for split, name in _split_names(tables, where).items()}


def _split_names(there: Iterable[str], where: str) -> dict[Split, str]:
    """The name of each split, of those that are there."""
    found: dict[Split, str] = {}
    for split in SPLITS:
        names = [name for name in SPLIT_NAMES[split] if name in there]
        if names:
            found[split] = names[0]
        if len(names) > 1:
            rank_zero_warn(
                f"{where} has {' and '.join(names)}: {names[0]} is the {split} split, the others are not read"
            )
    return found
