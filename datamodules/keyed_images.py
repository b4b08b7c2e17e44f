"""Pictures as training samples: decoding, replacing what cannot be read, augmentation seeded by the key."""

from __future__ import annotations

from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from d2v_lightning.errors import UserError
from datamodules.image_sources import ImageSource
from datamodules.samplers import Key, derived_seed, seeded
from datamodules.transforms import ImageTransform, as_channels

REPLACEMENTS = 100
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
"""What Pillow raises on broken files."""


class KeyedImages(Dataset[dict[str, Any]]):
    """Samples by (epoch, index), or by index for epoch 0: the same key gives the same sample in any process.

    A picture that cannot be read is replaced by another one that depends on (seed, index) only, and is listed in the
    sample's "unreadable" as "name: reason". The other one is "repeated": in evaluation it counts in its own place only. In
    prediction there is none: a picture that cannot be read gives a sample without "inputs".

    Args:
        source: the pictures.
        transform: picture -> (C, H, W).
        num_channels: C.
        grid: (rows, columns) of patches, to refuse pictures that are smaller than that.
        seed: of augmentation and replacements.
        replace: whether another picture takes the place of one that cannot be read.
    """

    def __init__(
        self,
        source: ImageSource,
        transform: ImageTransform,
        num_channels: int,
        grid: tuple[int, int] = (1, 1),
        seed: int = 0,
        replace: bool = True,
    ) -> None:
        self.source, self.transform, self.num_channels = source, transform, num_channels
        self.grid, self.seed, self.replace = grid, seed, replace

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key | int) -> dict[str, Any]:
        """{"inputs" (C, H, W), "index", "key", "unreadable", and "label" where there are labels}."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        unreadable: list[str] = []
        found = self._readable(index, unreadable)
        if found is None:
            return {"unreadable": unreadable}
        picture, place = found
        with seeded(derived_seed("augmentation", self.seed, epoch, index)):
            inputs = self.transform(picture)
        sample = {"inputs": inputs, "index": place, "key": (epoch, index), "unreadable": unreadable}
        sample["repeated"] = place != index
        if self.source.labels is not None:
            sample["label"] = self.source.labels[place]
        return sample

    def check_some(self) -> None:
        """Reads one picture, so that a data set without any use is refused before training starts.

        Raises:
            ValueError: none of a hundred can be read, or the first is smaller than the patch grid.
        """
        self._readable(0, [])

    def _readable(self, index: int, unreadable: list[str]) -> tuple[Image.Image, int] | None:
        place = index
        for attempt in range(REPLACEMENTS):
            try:
                picture = as_channels(self.source.picture(place), self.num_channels)
                if not self.replace:
                    refuse_too_small(picture, self.grid, self.source.name(place))
            except UNREADABLE as error:
                unreadable.append(f"{self.source.name(place)}: {one_line(error)}")
                if not self.replace:
                    return None
                place = derived_seed("replacement", self.seed, index, attempt) % len(self.source)
                continue
            refuse_too_small(picture, self.grid, self.source.name(place))
            return picture, place
        raise UserError(
            f"{REPLACEMENTS} pictures in a row cannot be read, the first is {unreadable[0]}: check the data set"
        )


def refuse_too_small(picture: Image.Image, grid: tuple[int, int], name: str) -> None:
    """Raises ValueError where there are more patches than pixels along a side."""
    width, height = picture.size
    if height < grid[0] or width < grid[1]:
        raise UserError(
            f"{name} has {height}x{width} pixels, fewer than the {grid[0]}x{grid[1]} patches of the model: remove it,"
            " or take a smaller image_size or a larger patch_size"
        )


def one_line(error: Exception) -> str:
    """The reason for a failure, for a list of such."""
    return " ".join(str(error).split()) or type(error).__name__
