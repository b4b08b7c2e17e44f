"""Modality encoders: what turns pictures, sound or text into tokens, and tells each token where it stands."""

from d2v_lightning.encoders.image import ImageEncoder

__all__ = ["ImageEncoder"]
