"""EMATeacher: after every optimiser step the teacher moves a little towards the student."""

from __future__ import annotations

from typing import Any

import torch

from d2v_lightning.callbacks.order import put_first
from d2v_lightning.configurable import Configurable
from d2v_lightning.flavour import pl
from d2v_lightning.support.errors import UserError


class EMATeacher(Configurable, pl.Callback):
    """teacher <- decay x teacher + (1 - decay) x student, with a decay that rises linearly and then stays.

    The decay is a pure function of the number of optimiser steps taken, so a resumed run needs no counter and
    accumulated micro-batches do not count. `Data2Vec` hands this callback to the Trainer by itself. Callbacks of
    the Trainer come after it: they see and save the teacher of the step that has ended.

    Args:
        decay_start: decay at the start. Images 1.0 Base: .9998, constant (released command).
        decay_end: decay after `anneal_steps` updates.
        anneal_steps: length of the rise in optimiser steps; 0 for a constant `decay_end`.
        first_update: the n of the first update in start + (end - start) x n / anneal_steps: 0 in the released image code,
            1 in all of fairseq's.
    """

    def __init__(
        self, decay_start: float = 0.9998, decay_end: float = 0.9998, anneal_steps: int = 0, first_update: int = 0
    ) -> None:
        for name, value in (("decay_start", decay_start), ("decay_end", decay_end)):
            if not 0.0 <= value <= 1.0:
                raise UserError(f"{name} is {value}: a decay lies between 0 (copy) and 1 (never move)")
        if first_update not in (0, 1):
            raise UserError(f"first_update is {first_update}: choose 0 (released image code) or 1 (fairseq)")
        self.decay_start, self.decay_end = decay_start, decay_end
        self.anneal_steps, self.first_update = anneal_steps, first_update
        self._last_step = 0

    def decay(self, step: int) -> float:
        """Decay of the update after optimiser step `step`, counted from 1."""
        n = step - 1 + self.first_update
        if n >= self.anneal_steps:
            return self.decay_end
        return self.decay_start + (self.decay_end - self.decay_start) * n / self.anneal_steps

    @torch.no_grad()
    def update(self, module: Any, step: int) -> None:
        """Move the teachers of a `Pretraining` as after optimiser step `step`, all tensors in one fused operation."""
        teacher, student = module.ema_pairs()
        torch._foreach_lerp_(teacher, student, 1.0 - self.decay(step))

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        put_first(trainer, self)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        stored = {str(parameter.dtype).removeprefix("torch.") for parameter in pl_module.parameters()}
        precision = str(trainer.precision)
        if precision.endswith("-true") and precision != "32-true":  # an XLA device says float32 and stores less
            stored.add(f"trainer.precision '{precision}'")
        if stored != {"float32"}:
            raise UserError(
                f"weights are stored as {', '.join(sorted(stored))}: at a decay of "
                f"{self.decay_end} the teacher would not move at all. Use precision 'bf16-mixed' or '16-mixed', "
                "which compute in half precision and keep float32 weights"
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last_step = trainer.global_step  # not in on_fit_start, where a resumed run still says 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._last_step:  # a micro-batch that was only accumulated
            return
        self._last_step = trainer.global_step
        self.update(pl_module, trainer.global_step)
        pl_module.log("train/ema_decay", self.decay(trainer.global_step))
