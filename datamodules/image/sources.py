"""Where pictures come from: folders, Hugging Face data sets, scikit-learn's digits. No transforms, no randomness."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from d2v_lightning.flavour import rank_zero_warn
from d2v_lightning.support.errors import UserError
from d2v_lightning.support.lines import listed
from datamodules.image.pictures import decoded, read_picture
from datamodules.shared.files import PASSED_BY, PICTURES, composed, files_of, refuse_gone
from datamodules.shared.samplers import derived_seed
from datamodules.shared.tables import SPLIT_NAMES


class ImageSource(Protocol):
    """Pictures by number, as they lie on disk."""

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the classes; empty where there are none."""

    @property
    def labels(self) -> Sequence[int] | None:
        """Class of every picture, or nothing."""

    def __len__(self) -> int: ...

    def picture(self, index: int) -> Image.Image:
        """Decodes one picture completely; any exception of Pillow's means that it cannot be read."""

    def name(self, index: int) -> str:
        """What to call a picture in a message."""


class PictureFiles:
    """Pictures in files, without classes."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = list(paths)
        self.class_names: Sequence[str] = ()
        self.labels: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def picture(self, index: int) -> Image.Image:
        """Decodes one picture; `FolderGoneError` where the folder that it was found in has vanished."""
        path = self.paths[index]
        try:
            return read_picture(path)
        except OSError as error:
            refuse_gone(path, error)
            raise

    def name(self, index: int) -> str:
        return self.paths[index]


class FolderSource(PictureFiles):
    """Pictures under one folder, where the first level of folders may name the class.

    Args:
        folder: searched through to any depth, see `files_below`.
        labelled: whether sub-folders are classes; by default if every picture lies one level deep, in several folders.
        class_names: the classes of the training split, so that numbers agree; by default the sub-folders found here.
            Names of classes are in composed letters (NFC), however the folders are written.

    Raises:
        FileNotFoundError: no such folder, or no picture in it.
        ValueError: pictures outside all class folders, or a class that `class_names` lacks.
    """

    def __init__(self, folder: Path, labelled: bool | None = None, class_names: Sequence[str] | None = None) -> None:
        super().__init__(files_of(folder, PICTURES, "picture"))
        inner = [os.path.relpath(path, folder).split(os.sep) for path in self.paths]
        if labelled is None:
            labelled = all(len(parts) == 2 for parts in inner) and len({composed(parts[0]) for parts in inner}) > 1
        if labelled:
            self._label(folder, inner, class_names)

    def _label(self, folder: Path, inner: Sequence[Sequence[str]], class_names: Sequence[str] | None) -> None:
        if loose := next((parts[0] for parts in inner if len(parts) == 1), None):
            raise UserError(f"{folder / loose} lies in no class folder: move it to {folder}/<class>/")
        classes = [composed(parts[0]) for parts in inner]
        found = sorted(set(classes))
        if class_names is None:
            class_names = found
        if unknown := sorted(set(found) - set(class_names)):
            raise UserError(
                f"class {', '.join(unknown)} is in {folder} but not in the training split: add training pictures of it"
                " or remove it"
            )
        number = {name: place for place, name in enumerate(class_names)}
        self.class_names, self.labels = list(class_names), [number[name] for name in classes]
        with os.scandir(folder) as entries:
            folders = {entry.name for entry in entries if entry.is_dir(follow_symlinks=False) and entry.name[0] != "."}
        if empty := sorted(name for name in folders - PASSED_BY if composed(name) not in found):
            rank_zero_warn(f"{folder}: {len(empty)} folder(s) without pictures are no classes: {listed(empty, 5)}")


def split_folder(root: Path, split: str) -> Path | None:
    """`root`/train, /val or /test under one of its usual names; None where there is none."""
    return next((root / name for name in SPLIT_NAMES[split] if (root / name).is_dir()), None)


class HuggingFaceSource:
    """One split of a Hugging Face data set that is on this machine.

    Args:
        table: a `datasets.Dataset`.
        image_column: by default the only column of pictures.
        label_column: by default the only column of classes.
        class_names: of the training split, by which labels are numbered.

    Attributes:
        withheld: how many rows have no label, see `is_withheld`. `labels` is None where any has none.

    Raises:
        ValueError: a column cannot be found or is not unique. On asking for labels: there is one that no class has.
    """

    def __init__(
        self,
        table: Any,
        image_column: str | None = None,
        label_column: str | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.image_column = find_image_column(table.features, image_column)
        self.label_column = find_label_column(table.features, label_column)
        self._own_names: Sequence[str] = getattr(table.features.get(self.label_column), "names", None) or ()
        self._names_of_train = class_names or ()
        self._labels = table.select_columns([self.label_column]) if self.label_column is not None else None
        self._table = undecoded(table, self.image_column)

    @cached_property
    def _numbered(self) -> tuple[Sequence[str], list[int] | None, int]:
        if self._labels is None:
            return (), None, 0
        return number_labels(list(self._labels[self.label_column]), self._own_names, self._names_of_train)

    @property
    def class_names(self) -> Sequence[str]:
        return self._names_of_train or self._own_names or self._numbered[0]

    @property
    def labels(self) -> Sequence[int] | None:
        return self._numbered[1]

    @property
    def withheld(self) -> int:
        return self._numbered[2]

    def __len__(self) -> int:
        return len(self._table)

    def picture(self, index: int) -> Image.Image:
        return open_cell(self._table[index][self.image_column])

    def name(self, index: int) -> str:
        return f"row {index}"


def is_withheld(label: Any) -> bool:
    """Whether a row has no label: -1 or another negative number, as the hub's test splits have it, None or NaN."""
    return label is None or (isinstance(label, (int, float)) and not label >= 0)


def number_labels(
    values: list[Any], own_names: Sequence[str], names_of_train: Sequence[str]
) -> tuple[Sequence[str], list[int] | None, int]:
    """The classes' names, labels as numbers (None where any is withheld), and how many are withheld.

    Args:
        values: numbers, or text, which is numbered in sorted order.
        own_names: of the numbers of this split; () where they have none.
        names_of_train: of the training split; () for the training split itself. A class has the same number in both.

    Raises:
        ValueError: a label that is out of range, or of no class of the training split.
    """
    known = [value for value in values if not is_withheld(value)]
    if all(isinstance(value, (int, float)) and float(value).is_integer() for value in known):
        numbers = sorted({int(value) for value in known})
        names = own_names or names_of_train or [str(number) for number in range(max(numbers, default=-1) + 1)]
        if strange := next((value for value in numbers if not 0 <= value < len(names)), None):
            raise UserError(f"label {strange} in a data set of {len(names)} classes: permitted is 0..{len(names) - 1}")
        texts = {number: names[number] for number in numbers}
    else:
        texts = {value: composed(str(value)) for value in known}
        names = sorted(set(texts.values()))
    classes = names_of_train or names
    number_of = {name: place for place, name in enumerate(classes)}
    if unknown := sorted(set(texts.values()) - set(classes)):
        raise UserError(f"class {', '.join(unknown)} is not in the training split: add training pictures or remove it")
    if len(known) < len(values):
        return list(classes), None, len(values) - len(known)
    return list(classes), [number_of[texts[value]] for value in values], 0


def find_image_column(features: Mapping[str, Any], wanted: str | None) -> str:
    """The column of pictures: the one asked for, or the only one of type Image (or {bytes, path}).

    Raises:
        ValueError: there is none, or several, or not the one asked for.
    """
    if wanted is not None:
        if wanted not in features:
            raise UserError(f"image_column {wanted!r}: the data set has {', '.join(features)}")
        kind = features[wanted]
        if not _is_image(kind) and getattr(kind, "dtype", None) not in (
            "string",
            "large_string",
            "binary",
            "large_binary",
        ):
            raise UserError(f"image_column {wanted!r} holds {kind}: pictures, their bytes or their paths are needed")
        return wanted
    found = [name for name, feature in features.items() if _is_image(feature)]
    if len(found) != 1:
        how_many = "more than one column" if found else "no column"
        raise UserError(f"{how_many} of pictures among {', '.join(features)}: set image_column")
    return found[0]


def _is_image(feature: Any) -> bool:
    return type(feature).__name__ == "Image" or (isinstance(feature, Mapping) and "bytes" in feature)


def find_label_column(features: Mapping[str, Any], wanted: str | None) -> str | None:
    """The column of classes: the one asked for, or the only ClassLabel, or "label" or "labels"; None where there is
    none.

    Raises:
        ValueError: not the one asked for, or more than one to choose from.
    """
    if wanted is not None:
        if wanted not in features:
            raise UserError(f"label_column {wanted!r}: the data set has {', '.join(features)}")
        return wanted
    found = [name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    found = found or [name for name in ("label", "labels") if name in features]
    if len(found) > 1:
        raise UserError(f"more than one column of classes ({', '.join(found)}): set label_column")
    return found[0] if found else None


def undecoded(table: Any, image_column: str) -> Any:
    """The table with pictures as {bytes, path}: we decode them, so that a broken one can be named and skipped."""
    from datasets import Image as ImageFeature

    return table.cast_column(image_column, ImageFeature(decode=False))


def open_cell(cell: Any) -> Image.Image:
    """Decodes a {bytes, path} cell; a ValueError if it is empty or none."""
    if cell is None or (isinstance(cell, Mapping) and not cell.get("bytes") and not cell.get("path")):
        raise UserError("there is no picture in this row")
    if not isinstance(cell, Mapping):
        raise UserError(f"this row holds {type(cell).__name__} instead of a picture")
    content = cell.get("bytes")
    return read_picture(cell["path"]) if content is None else decoded(content)


class DigitsSource:
    """scikit-learn's handwritten digits: 1,797 grey pictures of 8x8, which come with the package.

    The split is a fixed function of a picture's place in the package's list: 1,297 train, 250 val, 250 test.

    Args:
        split: "train", "val" or "test".
    """

    def __init__(self, split: str) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        order = sorted(range(len(digits.target)), key=lambda place: derived_seed("digits", place))
        first, last = {"train": (500, len(order)), "val": (0, 250), "test": (250, 500)}[split]
        self._places = sorted(order[first:last])
        self._pixels = (digits.images * (255 / 16)).round().astype("uint8")
        self.class_names: Sequence[str] = [str(digit) for digit in range(10)]
        self.labels: Sequence[int] | None = [int(digits.target[place]) for place in self._places]

    def __len__(self) -> int:
        return len(self._places)

    def picture(self, index: int) -> Image.Image:
        return Image.fromarray(self._pixels[self._places[index]])

    def name(self, index: int) -> str:
        return f"digit {self._places[index]}"


class SubsetSource:
    """Some pictures of another source, in the order given."""

    def __init__(self, source: ImageSource, places: Sequence[int]) -> None:
        self._source, self._places = source, places
        self.class_names = source.class_names
        self.labels = None if source.labels is None else [source.labels[place] for place in places]

    def __len__(self) -> int:
        return len(self._places)

    def picture(self, index: int) -> Image.Image:
        return self._source.picture(self._places[index])

    def name(self, index: int) -> str:
        return self._source.name(self._places[index])
