"""Callbacks: what happens over time, beside the training step."""

from d2v_lightning.callbacks.collapse_monitor import CollapseError, CollapseMonitor
from d2v_lightning.callbacks.compile_watch import CompileWatch
from d2v_lightning.callbacks.ema_teacher import EMATeacher
from d2v_lightning.callbacks.exact_resume import ExactResume
from d2v_lightning.callbacks.finite_loss import FiniteLoss, NonFiniteLossError
from d2v_lightning.callbacks.half_precision import HalfPrecisionCheck
from d2v_lightning.callbacks.online_probe import OnlineProbe
from d2v_lightning.callbacks.pictures import PictureLogger
from d2v_lightning.callbacks.prediction_writer import PredictionWriter
from d2v_lightning.callbacks.preemption import Preempted, Preemption
from d2v_lightning.callbacks.progress import Progress
from d2v_lightning.callbacks.run_summary import RunSummary
from d2v_lightning.callbacks.save_at_end import SaveAtEnd
from d2v_lightning.callbacks.save_on_error import SaveOnError
from d2v_lightning.callbacks.step_seed import StepSeed

__all__ = [
    "CollapseError",
    "CollapseMonitor",
    "CompileWatch",
    "EMATeacher",
    "ExactResume",
    "FiniteLoss",
    "HalfPrecisionCheck",
    "NonFiniteLossError",
    "OnlineProbe",
    "PictureLogger",
    "PredictionWriter",
    "Preempted",
    "Preemption",
    "Progress",
    "RunSummary",
    "SaveAtEnd",
    "SaveOnError",
    "StepSeed",
]
