"""Checkpoints of others, in and out: Meta's released files and Hugging Face models."""

from d2v_lightning.checkpoints.official import load_official, official_state_dict

__all__ = ["load_official", "official_state_dict"]
