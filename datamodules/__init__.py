"""Data for `d2v_lightning`: DataModules, and the collators and loaders they are made of."""

from datamodules.image.datamodule import ImageDataModule
from datamodules.multimodal import MultimodalDataModule
from datamodules.shared.collators import (
    BlockMaskCollator,
    ImageCollator,
    InverseBlockMaskCollator,
    SequenceMaskCollator,
)
from datamodules.shared.loader import ResumableLoader
from datamodules.shared.samplers import EpochBatchSampler
from datamodules.speech.collators import SpanMaskCollator, SpeechCollator, TranscriptCollator
from datamodules.speech.datamodule import SpeechDataModule
from datamodules.text.collators import TextCollator, TextMaskCollator
from datamodules.text.datamodule import TextDataModule
from datamodules.text.glue import GLUEDataModule
from datamodules.text.vocabulary import load_tokenizer, vocabulary_of

__all__ = [
    "BlockMaskCollator",
    "EpochBatchSampler",
    "GLUEDataModule",
    "ImageCollator",
    "ImageDataModule",
    "InverseBlockMaskCollator",
    "MultimodalDataModule",
    "ResumableLoader",
    "SequenceMaskCollator",
    "SpanMaskCollator",
    "SpeechCollator",
    "SpeechDataModule",
    "TextCollator",
    "TextDataModule",
    "TextMaskCollator",
    "TranscriptCollator",
    "load_tokenizer",
    "vocabulary_of",
]
