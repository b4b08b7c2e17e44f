"""SaveAtEnd: the end of a fit is in `last.ckpt`, whatever interval checkpoints are written at."""

from __future__ import annotations

from d2v_lightning.flavour import pl


class SaveAtEnd(pl.Callback):
    """Where the newest checkpoint is older than the last step, `ModelCheckpoint(save_last=...)` writes one more."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for keeper in trainer.checkpoint_callbacks:
            if not isinstance(keeper, pl.callbacks.ModelCheckpoint) or not keeper.save_last:
                continue
            if keeper._should_skip_saving_checkpoint(trainer):  # in a trial run, or this step is saved
                continue
            metrics = keeper._monitor_candidates(trainer)
            if keeper.save_last == "link":
                keeper._save_checkpoint(trainer, keeper.format_checkpoint_name(metrics))
            keeper._save_last_checkpoint(trainer, metrics)
