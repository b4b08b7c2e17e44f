"""SaveOnError: a run that an error ends is saved first, where its weights are those of a finished optimiser step."""

from __future__ import annotations

import os
from typing import Any

from d2v_lightning.callbacks.finite_loss import NonFiniteLossError
from d2v_lightning.callbacks.order import put_last
from d2v_lightning.flavour import pl


class SaveOnError(pl.Callback):
    """Writes `last.ckpt` where data, a loading process or anything else fails, and notes in the error what is safe.

    The run goes on from there as it would have. Nothing is written after a loss that was not finite, nor where the optimiser
    was at work on the weights. With several processes the first of them writes, if the error is its own.
    """

    def __init__(self) -> None:
        self._whole = False  # the weights are those of the last optimiser step
        self._saved_step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._whole, self._saved_step = True, trainer.global_step

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        self._whole = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        put_last(trainer, self)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._whole = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._whole = False  # what is to be saved is saved, by `SaveAtEnd`

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, Exception) or not trainer.is_global_zero:
            return
        keeper = next((c for c in trainer.checkpoint_callbacks if isinstance(c, pl.callbacks.ModelCheckpoint)), None)
        folder = getattr(keeper, "dirpath", None) or os.path.join(trainer.default_root_dir, "checkpoints")
        path = os.path.join(folder, "last.ckpt")
        step, whole, self._whole = trainer.global_step, self._whole, False
        # No other process has a part of the state.
        alone = isinstance(trainer.strategy, (pl.strategies.SingleDeviceStrategy, pl.strategies.DDPStrategy))
        good = alone and whole and step > self._saved_step and not isinstance(exception, NonFiniteLossError)
        if good and keeper is not None:
            if keeper.save_on_exception:
                keeper.save_on_exception = False  # this is that
            try:
                self._save(trainer, path)
            except (OSError, NonFiniteLossError) as error:
                exception.add_note(f"step {step} could not be saved ({error})")
            else:
                exception.add_note(f"Saved after optimiser step {step}: go on with --ckpt_path {path}")
                return
        if os.path.isfile(path):
            exception.add_note(f"The last whole checkpoint is {path}")

    @staticmethod
    def _save(trainer: pl.Trainer, path: str) -> None:
        """As `Trainer.save_checkpoint`, but waits for no other process: they may not come."""
        if os.path.islink(path):
            os.remove(path)  # ModelCheckpoint(save_last="link"): to write through the link would spoil another file
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        trainer.strategy.save_checkpoint(checkpoint, path)
