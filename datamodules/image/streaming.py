"""Pictures of a stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from d2v_lightning.support.errors import UserError
from datamodules.image.pictures import UNREADABLE, refuse_too_small
from datamodules.image.sources import find_image_column, find_label_column, is_withheld, open_cell, undecoded
from datamodules.image.transforms import ImageTransform, as_channels
from datamodules.shared.samplers import derived_seed, seeded
from datamodules.shared.streaming import Stream


class StreamedImages(Stream):
    """Pictures of a stream, see `Stream`.

    Args:
        stream, batch_size, seed, shuffle, buffer: see `Stream`.
        transform: picture -> (C, H, W).
        num_channels: C.
        grid: (rows, columns) of patches, to refuse pictures that are smaller than that.
        image_column: see `find_image_column`.
        label_column: see `find_label_column`.
        labelled: a row without a label is refused; otherwise it gives a sample without one.
    """

    unreadable = UNREADABLE

    def __init__(
        self,
        stream: Any,
        transform: ImageTransform,
        num_channels: int,
        batch_size: int,
        grid: tuple[int, int] = (1, 1),
        seed: int = 0,
        shuffle: bool = True,
        buffer: int = 10_000,
        image_column: str | None = None,
        label_column: str | None = None,
        labelled: bool = False,
    ) -> None:
        if stream.features is None:
            stream = stream._resolve_features()
        column = find_image_column(stream.features, image_column)
        self.label_column = find_label_column(stream.features, label_column)
        label = stream.features.get(self.label_column)
        self.class_names: Sequence[str] = list(getattr(label, "names", None) or ())
        if label is not None and not self.class_names and "int" not in str(getattr(label, "dtype", "")):
            raise UserError(
                f"label_column {self.label_column!r} is not numbered, and a stream cannot be searched for all"
            )
        super().__init__(undecoded(stream, column), column, batch_size, seed, shuffle, buffer)
        self.transform, self.num_channels, self.grid, self.labelled = transform, num_channels, grid, labelled

    def read(self, row: dict[str, Any]) -> Image.Image:
        picture = as_channels(open_cell(row[self.column]), self.num_channels)
        refuse_too_small(picture, self.grid)
        return picture

    def finished(self, read: Image.Image, row: dict[str, Any], name: str, index: int) -> dict[str, Any]:
        with seeded(derived_seed("augmentation", self.seed, self.epoch, index)):
            inputs = self.transform(read)
        if self.label_column is None:
            return {"inputs": inputs}
        label = row[self.label_column]
        if self.labelled and is_withheld(label):
            raise UserError(
                f"{name} has no label ({label} in {self.label_column}): classification needs a split with labels"
            )
        if self.labelled and self.class_names and not 0 <= label < len(self.class_names):
            raise UserError(f"{name} has label {label}: permitted is 0..{len(self.class_names) - 1}")
        return {"inputs": inputs} if is_withheld(label) else {"inputs": inputs, "label": label}
