"""Runs that stop and go on, for tests that a resumed one is the uninterrupted one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

SCHEDULED = 7


def run(
    model: Any, data: Any, folder: Path, stop_at: int, resumed: Path | None = None, **options: Any
) -> tuple[list[float], Any]:
    """Train for `stop_at` optimiser steps of two batches each, a checkpoint after each; losses and the final module.

    What `model.optimization` schedules is SCHEDULED steps, wherever the run stops.
    """
    losses: list[float] = []

    class Losses(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            losses.append(float(outputs["loss"]))

    model.configure_optimizers = lambda: model.optimization.configure(model, SCHEDULED)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=stop_at,
        max_epochs=-1,
        accumulate_grad_batches=2,
        callbacks=[Losses(), ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)],
        use_distributed_sampler=False,
        limit_val_batches=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(model, data, ckpt_path=resumed, weights_only=True)
    return losses, model
