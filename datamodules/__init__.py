"""Data for `d2v_lightning`: DataModules, and the collators and loaders they are made of."""

from datamodules.collators import BlockMaskCollator, ImageCollator, InverseBlockMaskCollator, SequenceMaskCollator
from datamodules.glue import GLUEDataModule
from datamodules.image import ImageDataModule
from datamodules.loader import ResumableLoader
from datamodules.multimodal import MultimodalDataModule
from datamodules.samplers import EpochBatchSampler
from datamodules.speech import SpeechDataModule
from datamodules.speech_collators import SpanMaskCollator, SpeechCollator, TranscriptCollator
from datamodules.text import TextDataModule
from datamodules.text_collators import TextCollator, TextMaskCollator
from datamodules.vocabulary import load_tokenizer, vocabulary_of

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
