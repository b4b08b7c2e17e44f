"""SaveAtEnd: the end of a fit is in `last.ckpt`, whatever interval checkpoints are written at."""

from __future__ import annotations

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint


class SaveAtEnd(Callback):
    """Where the newest checkpoint is older than the last step, `ModelCheckpoint(save_last=...)` writes one more."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for keeper in trainer.checkpoint_callbacks:
            if not isinstance(keeper, ModelCheckpoint) or not keeper.save_last:
                continue
            if keeper._should_skip_saving_checkpoint(trainer):  # in a trial run, or this step is saved
                continue
            metrics = keeper._monitor_candidates(trainer)
            if keeper.save_last == "link":
                keeper._save_checkpoint(trainer, keeper.format_checkpoint_name(metrics))
            keeper._save_last_checkpoint(trainer, metrics)
