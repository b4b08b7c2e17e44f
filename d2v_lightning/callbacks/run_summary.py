"""RunSummary: one line at the start that says how large the model is and how large the effective batch."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from d2v_lightning.configurable import Configurable
from d2v_lightning.flavour import pl, rank_zero_info


class RunSummary(Configurable, pl.Callback):
    """Prints parameters, effective batch (per device x devices x accumulated), optimiser steps and precision.

    The batch per device is the datamodule's `batch_tokens` or `batch_size` where it has one, else that of the first batch.
    """

    def __init__(self) -> None:
        self._said = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._said = False
        data = getattr(trainer, "datamodule", None)
        tokens, batch_size = getattr(data, "batch_tokens", None), getattr(data, "batch_size", None)
        if isinstance(tokens, int):
            self._say(trainer, pl_module, tokens, " tokens")
        elif isinstance(batch_size, int):
            self._say(trainer, pl_module, batch_size)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self._said:
            self._say(trainer, pl_module, batch_size_of(batch))

    def _say(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch_size: int | None, unit: str = "") -> None:
        self._said = True
        rank_zero_info(summary(trainer, pl_module, batch_size, unit))


def summary(trainer: pl.Trainer, pl_module: pl.LightningModule, batch_size: int | None, unit: str = "") -> str:
    """The line.

    Args:
        trainer: of a run that has started.
        pl_module: a module with `student` and `teacher`, or any other.
        batch_size: samples per device and micro-batch; None where a batch does not say.
        unit: what it counts instead of samples.
    """
    devices, accumulated = trainer.world_size, trainer.accumulate_grad_batches
    if batch_size is None:
        batch = f"{devices} devices x {accumulated} accumulated batches a step"
    else:
        batch = (
            f"effective batch {batch_size * devices * accumulated:,}{unit} = {batch_size:,} per device x {devices} "
            f"device{'s' if devices > 1 else ''} x {accumulated} accumulated"
        )
    steps = trainer.estimated_stepping_batches
    length = "no end set" if math.isinf(steps) else f"{int(steps):,} optimiser steps"
    return f"{_parameters(pl_module)}, {batch}, {length}, {trainer.precision}"


def batch_size_of(batch: Any) -> int | None:
    """Samples in a batch: rows of "inputs", else of the first tensor in a dict, tuple or list; None without one."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else None
    if isinstance(batch, dict):
        parts = [batch["inputs"]] if "inputs" in batch else list(batch.values())
    else:
        parts = list(batch) if isinstance(batch, (list, tuple)) else []
    sizes = (batch_size_of(part) for part in parts)
    return next((size for size in sizes if size is not None), None)


def _parameters(pl_module: pl.LightningModule) -> str:
    student, teacher = getattr(pl_module, "student", None), getattr(pl_module, "teacher", None)
    if isinstance(student, nn.Module) and isinstance(teacher, nn.Module):
        return f"data2vec: {_count(student)} student parameters (+ {_count(teacher)} teacher)"
    everything, trainable = _count(pl_module), _count(pl_module, trainable=True)
    part = "" if everything == trainable else f" ({trainable} trained)"
    return f"{type(pl_module).__name__}: {everything} parameters{part}"


def _count(module: nn.Module, trainable: bool = False) -> str:
    number = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad or not trainable)
    if number >= 1_000_000:
        return f"{number / 1e6:,.1f} M"
    return f"{number / 1e3:.1f} k" if number >= 1000 else str(number)
