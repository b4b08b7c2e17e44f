"""Callbacks: what happens over time, beside the training step."""

from d2v_lightning.callbacks.ema_teacher import EMATeacher
from d2v_lightning.callbacks.step_seed import StepSeed

__all__ = ["EMATeacher", "StepSeed"]
