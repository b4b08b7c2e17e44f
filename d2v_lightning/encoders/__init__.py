"""Modality encoders: what turns pictures, sound or text into tokens, and tells each token where it stands."""

from d2v_lightning.encoders.audio import AudioEncoder
from d2v_lightning.encoders.encoder import Encoder, Position
from d2v_lightning.encoders.image import ImageEncoder
from d2v_lightning.encoders.log_mel import LogMelEncoder
from d2v_lightning.encoders.text import TextEncoder

__all__ = ["AudioEncoder", "Encoder", "ImageEncoder", "LogMelEncoder", "Position", "TextEncoder"]
