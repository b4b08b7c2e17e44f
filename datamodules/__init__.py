"""Data for `d2v_lightning`: DataModules, and the collators and loaders they are made of."""

from datamodules.collators import BlockMaskCollator, ImageCollator, InverseBlockMaskCollator
from datamodules.image import ImageDataModule
from datamodules.loader import ResumableLoader
from datamodules.samplers import EpochBatchSampler

__all__ = [
    "BlockMaskCollator",
    "EpochBatchSampler",
    "ImageCollator",
    "ImageDataModule",
    "InverseBlockMaskCollator",
    "ResumableLoader",
]
