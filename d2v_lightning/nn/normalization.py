"""What pictures are normalised with before a model sees them: one mean and one standard deviation a channel."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from d2v_lightning.support.errors import UserError


class Normalization(NamedTuple):
    """A picture's values in 0..1 become (value - mean) / std.

    Attributes:
        mean: one number a channel.
        std: likewise, each above 0.
    """

    mean: list[float]
    std: list[float]

    def __str__(self) -> str:
        return f"mean {self.mean}, std {self.std}"

    def __call__(self, images: Tensor) -> Tensor:
        """Images (..., C, H, W) float in 0..1, normalised."""
        mean, std = (images.new_tensor(values)[:, None, None] for values in self)
        return (images - mean) / std

    def undone(self, images: Tensor) -> Tensor:
        """Normalised images (..., C, H, W), in 0..1 again."""
        mean, std = (images.new_tensor(values)[:, None, None] for values in self)
        return images * std + mean

    def agrees(self, other: Normalization) -> bool:
        """Whether both do the same but for rounding: files of other libraries hold numbers of single precision."""
        mine, theirs = (*self.mean, *self.std), (*other.mean, *other.std)
        return len(mine) == len(theirs) and all(
            math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-5) for a, b in zip(mine, theirs, strict=True)
        )

    def of_channels(self, channels: int) -> Normalization:
        """Published values for colour pictures: as they are for 3 channels, their average for any other number."""
        if channels == len(self.mean):
            return self
        mean, std = (sum(values) / len(values) for values in self)
        return Normalization([mean] * channels, [std] * channels)


# Of both pre-trainings, and of 2.0's fine-tuning.
IMAGENET = Normalization([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
# Of 1.0's fine-tuning, whose command leaves out --imagenet_default_mean_and_std.
INCEPTION = Normalization([0.5] * 3, [0.5] * 3)


def normalization_of(mean: Any, std: Any, channels: int | None, owner: str = "") -> Normalization | None:
    """Mean and deviation from anywhere, looked at; None where neither is given.

    Args:
        mean: one number a channel.
        std: likewise.
        channels: how many there are; None for as many as `mean` has.
        owner: goes before both names in messages, "model.".

    Raises:
        ValueError: only one is given, it is no list of finite numbers, has another length, or a deviation is not above 0.
    """
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise UserError(f"{owner}mean is {mean}, {owner}std is {std}: give both, or neither")
    for name, values in ((f"{owner}mean", mean), (f"{owner}std", std)):
        if not isinstance(values, Sequence) or isinstance(values, str):
            raise UserError(f"{name} is {values!r}: it must be a list of numbers, one per channel")
        channels = max(1, len(values)) if channels is None else channels
        if len(values) != channels:
            raise UserError(f"{name} has {len(values)} values for {channels} channels: give one per channel")
        if not all(is_finite(value) for value in values):
            raise UserError(f"{name} is {list(values)}: it must be a list of finite numbers, one per channel")
    if min(std) <= 0:
        raise UserError(f"{owner}std is {list(std)}: give numbers above 0")
    return Normalization([float(value) for value in mean], [float(value) for value in std])


def is_finite(value: Any) -> bool:
    """Whether something from a file is a number that a float can be; JSON has longer ones."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
