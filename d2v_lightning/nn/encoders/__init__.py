"""Modality encoders: what turns pictures, sound or text into tokens, and tells each token where it stands."""

from d2v_lightning.nn.encoders.audio import AudioEncoder
from d2v_lightning.nn.encoders.encoder import Encoder, Position
from d2v_lightning.nn.encoders.image import ImageEncoder
from d2v_lightning.nn.encoders.log_mel import LogMelEncoder
from d2v_lightning.nn.encoders.text import TextEncoder

__all__ = ["AudioEncoder", "Encoder", "ImageEncoder", "LogMelEncoder", "Position", "TextEncoder"]
