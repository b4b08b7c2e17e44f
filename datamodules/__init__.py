"""Data for `d2v_lightning`: DataModules, and the collators and loaders they are made of."""

from datamodules.collators import BlockMaskCollator, ImageCollator, InverseBlockMaskCollator
from datamodules.image import ImageDataModule
from datamodules.loader import ResumableLoader
from datamodules.samplers import EpochBatchSampler
from datamodules.speech import SpeechDataModule
from datamodules.speech_collators import SpanMaskCollator, SpeechCollator, TranscriptCollator

__all__ = [
    "BlockMaskCollator",
    "EpochBatchSampler",
    "ImageCollator",
    "ImageDataModule",
    "InverseBlockMaskCollator",
    "ResumableLoader",
    "SpanMaskCollator",
    "SpeechCollator",
    "SpeechDataModule",
    "TranscriptCollator",
]
