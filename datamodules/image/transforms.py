"""Augmentation of images: the published recipes for pre-training, for classification, and for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from d2v_lightning.support.errors import UserError

ImageTransform = Callable[[Image.Image], Tensor]
Interpolation = Literal["bicubic", "bilinear", "nearest"]

STRIP = 16  # times as long as what is shown of it
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def as_channels(picture: Image.Image, num_channels: int) -> Image.Image:
    """Grey, palette, CMYK, 16-bit or transparent pictures as 8-bit ones with `num_channels` channels.

    16-bit values are scaled to 8 bits (Pillow alone would clip them). Transparency is dropped unless four channels are
    wanted.

    Raises:
        ValueError: `num_channels` has no picture mode, or the picture's values have no defined range.
    """
    if num_channels not in MODES:
        raise UserError(f"num_channels {num_channels}: pictures can be read with {', '.join(map(str, MODES))} channels")
    if picture.mode == "F":
        raise UserError("floating-point pictures have no defined range of values: save them with 8 or 16 bits")
    if picture.mode.startswith("I"):
        values = np.asarray(picture).astype(np.int64)
        picture = Image.fromarray((values.clip(0, 65535) // 257).astype(np.uint8))
    elif picture.mode == "P":
        picture = picture.convert("RGBA")
    return picture.convert(MODES[num_channels])


def pretrain_transform(
    size: tuple[int, int],
    scale: tuple[float, float],
    flip: float,
    colour_jitter: float,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: Interpolation,
) -> ImageTransform:
    """data2vec 1.0's augmentation: random resized crop, flip, colour jitter (brightness, contrast, saturation).

    2.0's, which is MAE's, is the same with a `scale` of (.2, 1) and no jitter.

    The released code jitters the whole picture before it crops. Here the crop comes first, which costs a fraction. The
    jitter is per pixel, save that contrast is then relative to the mean of the crop.

    Args:
        size: (height, width) of the result.
        scale: range of the crop's share of the picture's area.
        flip: probability of a horizontal flip.
        colour_jitter: strength of each of the three; 0 is off.
        mean: per channel, of values in 0..1.
        std: likewise.
        interpolation: of the resizing.
    """
    from torchvision.transforms import v2

    steps: list[torch.nn.Module] = [
        v2.RandomResizedCrop(size, scale, interpolation=_mode(interpolation), antialias=True)
    ]
    if flip:
        steps.append(v2.RandomHorizontalFlip(flip))
    if colour_jitter:
        steps.append(v2.ColorJitter(colour_jitter, colour_jitter, colour_jitter))
    return v2.Compose([*steps, *_to_normalised(mean, std)])


def classify_transform(
    size: tuple[int, int],
    scale: tuple[float, float],
    flip: float,
    colour_jitter: float,
    rand_augment: str | None,
    random_erasing: float,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: Interpolation,
) -> ImageTransform:
    """The fine-tuning augmentation of BEiT and data2vec 1.0, from timm: crop, flip, RandAugment, random erasing.

    Args:
        size: (height, width) of the result.
        scale: range of the crop's share of the picture's area.
        flip: probability of a horizontal flip.
        colour_jitter: used by timm only where `rand_augment` is off.
        rand_augment: timm's description of the policy; `None` is off.
        random_erasing: probability that a rectangle is replaced by noise.
        mean: per channel, of values in 0..1.
        std: likewise.
        interpolation: of the resizing.
    """
    from timm.data import create_transform

    if len(mean) not in (1, 3):
        raise UserError(f"{len(mean)} channels: timm's augmentation is for 1 or 3; set rand_augment null to go without")
    transform: Any = create_transform(
        input_size=(len(mean), *size),
        is_training=True,
        scale=scale,
        hflip=flip,
        color_jitter=colour_jitter or None,
        auto_augment=rand_augment,
        re_prob=random_erasing,
        re_mode="pixel",
        re_count=1,
        mean=tuple(mean),
        std=tuple(std),
        interpolation=interpolation,
    )
    for step in transform.transforms:
        for operation in getattr(step, "ops", ()):
            if operation.name.startswith("Posterize"):
                operation.aug_fn = _posterize
    return cast(ImageTransform, transform)


def evaluation_transform(
    size: tuple[int, int],
    crop_share: float,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: Interpolation,
) -> ImageTransform:
    """Resizes the shorter side to size / crop_share and takes the centre; nothing random.

    Args:
        size: (height, width) of the result.
        crop_share: .875 shows the central 224 of 256 pixels; 1 shows all of a square picture.
        mean: per channel, of values in 0..1.
        std: likewise.
        interpolation: of the resizing.
    """
    from torchvision.transforms import v2

    return v2.Compose(
        [
            _ResizeToCover((int(size[0] / crop_share + 1e-6), int(size[1] / crop_share + 1e-6)), interpolation),
            v2.CenterCrop(size),
            *_to_normalised(mean, std),
        ]
    )


def _posterize(picture: Image.Image, bits: int, **_: object) -> Image.Image:
    """Keeps the upper `bits`. timm's strongest level asks for 0, which means black and which Pillow 13 refuses."""
    if bits >= 8:
        return picture
    return ImageOps.posterize(picture, bits) if bits else Image.new(picture.mode, picture.size)


class _ResizeToCover(torch.nn.Module):
    """Scales a picture, keeping its shape, until it just covers `size`: for a square size, its shorter side fits.

    The other side is rounded down, as torchvision's `Resize` does in the released evaluation, and transformers too.
    """

    def __init__(self, size: tuple[int, int], interpolation: Interpolation) -> None:
        super().__init__()
        self.size, self.mode = size, _mode(interpolation)

    def forward(self, picture: Image.Image) -> Image.Image:
        from torchvision.transforms.v2 import functional

        width, height = picture.size
        factor = max(self.size[0] / height, self.size[1] / width)
        # Of a strip, only the middle is scaled: as a whole it would need gigabytes.
        height, width = (
            min(side, 1 + int(STRIP * fit / factor)) for side, fit in zip((height, width), self.size, strict=True)
        )
        if (width, height) != picture.size:
            picture = functional.center_crop(picture, [height, width])
        down, across = self.size
        if down * width >= across * height:
            covering = [down, max(across, int(down * width / height))]
        else:
            covering = [max(down, int(across * height / width)), across]
        return functional.resize(picture, covering, self.mode, antialias=True)


def _to_normalised(mean: Sequence[float], std: Sequence[float]) -> list[torch.nn.Module]:
    from torchvision.transforms import v2

    return [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]


def _mode(interpolation: Interpolation) -> object:
    from torchvision.transforms import InterpolationMode

    return InterpolationMode(interpolation)
