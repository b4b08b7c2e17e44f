"""ExactResume: a resumed run goes on with the batch, the epoch and the validation that come next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from d2v_lightning.callbacks.order import put_first
from d2v_lightning.flavour import pl

ValidationStage = pl.loops.evaluation_loop.RestartStage
FitStage = pl.loops.fit_loop.RestartStage
EpochStage = pl.loops.training_epoch_loop.RestartStage


@dataclass
class Place:
    """Where a checkpoint was written.

    Args:
        epochs: finished ones.
        batches: of the epoch that was running; 0 between two epochs.
        all_batches: over all epochs.
        ends: the last batch of the epoch was trained on, what comes at its end has not been done.
        validated: the validation that is due after this batch, if one is, has been done.
    """

    epochs: int
    batches: int
    all_batches: int
    ends: bool
    validated: bool


class ExactResume(pl.Callback):
    """Mends what Lightning 2.6 makes of a checkpoint of a fit. Our modules and datamodules bring it along.

    - A loader is made before the checkpoint is read wherever `configure_optimizers` asks for
      `trainer.estimated_stepping_batches`. Lightning then never gives the loader its state.
    - An epoch counts as done wherever `fit` stops in it, and an epoch that follows a resume does not count as begun. The rest
      of an epoch, or the epoch after it, would have the number of another one.
    - From a checkpoint that was written after the last batch of an epoch, the validation of that epoch would be left out.
    - Accumulated gradients are in no checkpoint. One that a validation writes between two optimiser steps says that its run
      stands behind the last step, so the batches since then come again.
    - Loaders that are made anew every n epochs would be so n epochs after the resume.
    - `overfit_batches` makes Lightning swap a loader's sampler, which works for a `DataLoader` alone. Our loaders begin
      each epoch anew by themselves.
    """

    def __init__(self) -> None:
        self._place: Place | None = None
        # After the last optimiser step: its number, the batches over all epochs, and the states of the loaders.
        self._last_step: tuple[int, int, list[Any]] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        put_first(trainer, self)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Corrects the counts before Lightning takes them over."""
        self._place = None
        if trainer.state.fn != pl.trainer.states.TrainerFn.FITTING or "loops" not in checkpoint:
            return
        fit = checkpoint["loops"]["fit_loop"]
        self._place = place = _place(fit)
        inside = place.batches > 0
        for counts in fit["epoch_progress"].values():
            counts.update(ready=place.epochs + inside, started=place.epochs + inside)
            counts.update(processed=place.epochs, completed=place.epochs)
        progress = fit["epoch_loop.batch_progress"]
        progress["total"].update(_all(place.all_batches))
        progress["current"].update(_all(place.batches))
        progress["is_last_batch"] = place.ends

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._place is not None:
            _go_on(trainer, pl_module, self._place)
            self._place = None
        if trainer.overfit_batches:  # type: ignore[attr-defined]
            for loader in trainer.fit_loop._combined_loader.flattened:  # type: ignore[union-attr]
                if hasattr(loader, "overfits"):
                    loader.overfits = True
        self._remember_step(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._last_step is None or trainer.global_step != self._last_step[0]:
            self._remember_step(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Goes back to the last optimiser step."""
        fit = checkpoint["loops"]["fit_loop"]
        if trainer.fit_loop._combined_loader_states_to_load:  # a finished run, whose loader was never given its state
            fit["state_dict"]["combined_loader"] = trainer.fit_loop._combined_loader_states_to_load
        if self._last_step is None or self._last_step[0] != trainer.global_step:
            return
        progress = fit["epoch_loop.batch_progress"]
        since = progress["total"]["ready"] - self._last_step[1]
        if not since:
            return
        for counts in fit["epoch_progress"].values():  # a fit that stops here has counted this epoch as done
            counts.update(processed=counts["started"] - 1, completed=counts["started"] - 1)
        progress["total"].update(_all(self._last_step[1]))
        progress["current"].update(_all(progress["current"]["ready"] - since))
        progress["is_last_batch"] = False
        if self._last_step[2]:
            fit["state_dict"]["combined_loader"] = self._last_step[2]

    def _remember_step(self, trainer: pl.Trainer) -> None:
        loop: Any = trainer.fit_loop
        states = loop._combined_loader._state_dicts()
        self._last_step = trainer.global_step, loop.epoch_loop.batch_progress.total.ready, states


def _all(number: int) -> dict[str, int]:
    return {"ready": number, "started": number, "processed": number, "completed": number}


def _place(fit: dict[str, Any]) -> Place:
    """Reads it off the state of a fit loop."""
    epochs, progress = fit["epoch_progress"]["total"], fit["epoch_loop.batch_progress"]
    batches, total = progress["current"], progress["total"]
    trained = batches["processed"]
    last = progress["is_last_batch"] and batches["ready"] == trained
    in_batch = batches["completed"] != batches["ready"]
    if epochs["processed"] == epochs["started"] and not in_batch and trained:  # `fit`, or an epoch, has ended
        if last:
            return Place(epochs["processed"], 0, total["processed"], False, True)
        return Place(epochs["processed"] - 1, trained, total["processed"], False, True)
    validated = not in_batch and fit["epoch_loop.val_loop.batch_progress"]["is_last_batch"]
    return Place(epochs["processed"], trained, total["processed"], last, validated)


def _go_on(trainer: pl.Trainer, pl_module: pl.LightningModule, place: Place) -> None:
    """Puts the loops, which have their counts and their loaders, at the place. The first epoch has not begun yet."""
    fit: Any = trainer.fit_loop
    epoch: Any = fit.epoch_loop
    if fit._combined_loader_states_to_load:  # the loader was there before the checkpoint was
        fit._combined_loader._load_state_dicts(fit._combined_loader_states_to_load)
        fit._combined_loader_states_to_load = []
        iter(fit._data_fetcher)
    inside = place.batches > 0
    if every := trainer.reload_dataloaders_every_n_epochs:  # type: ignore[attr-defined]
        begun = place.epochs if inside else place.epochs - 1
        fit._last_train_dl_reload_epoch = begun // every * every
    for counts in (fit.epoch_progress.total, fit.epoch_progress.current):
        counts.ready = counts.started = place.epochs + inside
        counts.processed = counts.completed = place.epochs
    fit._restarting = epoch.restarting = inside
    fit._restart_stage = FitStage.RESTARTED_MID_EPOCH if inside else FitStage.NONE
    epoch._restart_stage = EpochStage.RESTARTED_ON_LAST if inside else EpochStage.NONE
    undone = inside and not place.validated
    epoch.val_loop._restart_stage = ValidationStage.RESTARTED_MID_EVALUATION if undone else ValidationStage.NONE
    if undone:
        epoch.val_loop.batch_progress.reset_on_run()
    if place.ends:  # where no validation is due either, the epoch ends without another batch
        fit._data_fetcher.reset()
        fit._data_fetcher.done = True
    if pl_module.automatic_optimization:  # the step that metrics are logged at; it moves on behind a validation
        due = inside and epoch._should_check_val_fx(fit._data_fetcher) and not epoch._should_accumulate()
        epoch._batches_that_stepped = trainer.global_step - due
