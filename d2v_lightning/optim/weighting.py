"""Micro-batches weighted by what they hold, so that accumulation and several devices give the gradient of one big batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class WeighsMicroBatches:
    """Mixin for a LightningModule whose `training_step` returns a mean over a varying number of things.

    The published gradient is sum of losses / sum of counts over all ranks and micro-batches; Lightning averages means. So
    each micro-batch is weighted by its count on the way in, and the whole is divided by the total on the way out, before
    clipping. `training_step` sets `units` to its count, in units near those of a usual micro-batch, so that the loss scale
    of 16-bit training stays in its range.
    """

    units = 1.0  # of the running micro-batch and ...
    _units_in_window = 0.0  # ... of those accumulated since the last optimiser step

    def on_train_start(self) -> None:
        self._units_in_window = 0.0

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        self._units_in_window += self.units
        super().backward(loss * self.units, *args, **kwargs)  # type: ignore[misc]  # LightningModule's

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the accumulated gradient by the count of the whole step; clipping comes after this."""
        if self._units_in_window == 0.0:  # every micro-batch of the step was skipped
            return
        trainer: Any = self.trainer  # type: ignore[attr-defined]
        # Lightning has divided by the number of micro-batches, the strategy by the number of ranks.
        factor: float | Tensor = trainer.accumulate_grad_batches / self._units_in_window
        if trainer.world_size > 1:
            units = torch.tensor(self._units_in_window, device=self.device)  # type: ignore[attr-defined]
            factor = trainer.accumulate_grad_batches / trainer.strategy.reduce(units, reduce_op="mean")
        parameters: Any = self.parameters()  # type: ignore[attr-defined]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        torch._foreach_mul_(gradients, factor)
        self._units_in_window = 0.0
