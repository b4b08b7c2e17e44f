"""Checkpoints of others, in and out: Meta's released files and Hugging Face models."""

from d2v_lightning.checkpoints.huggingface import huggingface_config, huggingface_state_dict, save_huggingface
from d2v_lightning.checkpoints.official import official_state_dict, read_dictionary

__all__ = [
    "huggingface_config",
    "huggingface_state_dict",
    "official_state_dict",
    "read_dictionary",
    "save_huggingface",
]
