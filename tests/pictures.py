"""Pictures of noise, and an ImageDataModule that reads them, for tests of images."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datamodules import ImageDataModule

CLASSES = ("ape", "bee", "cat")


DIGITS: dict[str, Any] = {
    "dataset": "digits",
    "image_size": 8,
    "patch_size": 2,
    "num_channels": 1,
    "batch_size": 64,
    "num_workers": 0,
    "scale": (0.6, 1.0),
    "colour_jitter": 0.0,
}


def picture(seed: int, size: tuple[int, int] = (20, 24)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def of_tree(root: Path | None, **arguments: Any) -> ImageDataModule:
    return ImageDataModule(
        **{
            "root": None if root is None else str(root),
            "image_size": 16,
            "patch_size": 4,
            "num_channels": 3,
            "batch_size": 4,
            "num_workers": 0,
            **arguments,
        }
    )


def ready(data: ImageDataModule, stage: str = "fit") -> ImageDataModule:
    data.setup(stage)
    return data


def content(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """A file of it."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def write_tree(root: Path) -> Path:
    """Twelve training, six validation and six test pictures of three classes."""
    for split, number in (("train", 4), ("val", 2), ("test", 2)):
        for place, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for i in range(number):
                picture(100 * place + i + 1000 * number).save(root / split / name / f"{i}.png")
    return root
