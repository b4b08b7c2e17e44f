"""Looking at a model in the middle of its training without leaving a trace."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from d2v_lightning.flavour import pl
from d2v_lightning.nn.backbone import evaluating


@contextmanager
def without_side_effects(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Iterator[None]:
    """Eval mode, no gradients, the Trainer's precision; modes and all random states are afterwards what they were."""
    devices = [pl_module.device] if pl_module.device.type == "cuda" else []
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with (
            torch.random.fork_rng(devices),
            torch.no_grad(),
            evaluating(pl_module),
            trainer.precision_plugin.forward_context(),
        ):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
