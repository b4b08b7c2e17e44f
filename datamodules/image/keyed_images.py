"""Pictures as training samples: decoding, replacing what cannot be read, augmentation seeded by the key."""

from __future__ import annotations

from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from d2v_lightning.support.errors import UserError, reason_of
from datamodules.image.pictures import UNREADABLE, refuse_too_small
from datamodules.image.sources import ImageSource
from datamodules.image.transforms import ImageTransform, as_channels
from datamodules.shared.files import FolderGoneError, GoneFiles
from datamodules.shared.samplers import Key, derived_seed, seeded

REPLACEMENTS = 100


class KeyedImages(Dataset[dict[str, Any]]):
    """Samples by (epoch, index), or by index for epoch 0: the same key gives the same sample in any process.

    A picture that cannot be read, or has fewer pixels than patches, is listed in the sample's "unreadable" as
    "name: reason".

    Args:
        source: the pictures.
        transform: picture -> (C, H, W).
        num_channels: C.
        grid: (rows, columns) of patches.
        seed: of augmentation and replacements.
        replace: another picture, which depends on (seed, index) only, takes the place of one that cannot be read. It is
            "repeated": in evaluation it counts in its own place only. Otherwise the sample has no "inputs".
        labelled: give the labels that the source has.

    Raises:
        FolderGoneError: on reading, where a folder has vanished, or the files of many keys in a row are gone.
    """

    def __init__(
        self,
        source: ImageSource,
        transform: ImageTransform,
        num_channels: int,
        grid: tuple[int, int] = (1, 1),
        seed: int = 0,
        replace: bool = True,
        labelled: bool = True,
    ) -> None:
        self.source, self.transform, self.num_channels = source, transform, num_channels
        self.grid, self.seed, self.replace, self.labelled = grid, seed, replace, labelled
        self._gone = GoneFiles()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key | int) -> dict[str, Any]:
        """{"inputs" (C, H, W), "index", "key", "unreadable", and "label" where there are labels}."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        unreadable: list[str] = []
        found = self._readable(index, unreadable, REPLACEMENTS if self.replace else 1)
        if found is None:
            return {"unreadable": unreadable}
        picture, place = found
        with seeded(derived_seed("augmentation", self.seed, epoch, index)):
            inputs = self.transform(picture)
        sample = {"inputs": inputs, "index": place, "key": (epoch, index), "unreadable": unreadable}
        sample["repeated"] = place != index
        if self.labelled and self.source.labels is not None:
            sample["label"] = self.source.labels[place]
        return sample

    def check_some(self) -> None:
        """Makes one sample, so that a data set without any use is refused before training starts.

        Raises:
            ValueError: there are none, none of a hundred can be read, or labels are out of range.
        """
        if not len(self):
            raise UserError("the data set has no rows: check it")
        _ = self[0]

    def _readable(self, index: int, unreadable: list[str], attempts: int) -> tuple[Image.Image, int] | None:
        place = index
        for attempt in range(attempts):
            try:
                picture = as_channels(self.source.picture(place), self.num_channels)
                refuse_too_small(picture, self.grid)
            except FolderGoneError:
                raise
            except UNREADABLE as error:
                unreadable.append(f"{self.source.name(place)}: {reason_of(error)}")
                if attempt == 0:
                    self._gone.note(error, unreadable[0])
                place = derived_seed("replacement", self.seed, index, attempt) % len(self.source)
                continue
            if attempt == 0:
                self._gone.note(None)
            return picture, place
        if attempts == 1:
            return None
        raise UserError(
            f"{REPLACEMENTS} pictures in a row cannot be read, the first is {unreadable[0]}: check the data set"
        )
