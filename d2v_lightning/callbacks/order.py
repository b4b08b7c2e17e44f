"""The order of callbacks: what belongs to an optimiser step comes before anything of the user's, what saves the run last."""

from __future__ import annotations

from d2v_lightning.flavour import pl


def put_first(trainer: pl.Trainer, callback: pl.Callback) -> None:
    """Put a callback before all others; to be called in its `setup`.

    Lightning puts the callbacks of a module behind those of the Trainer. A callback of the user that saves in
    `on_train_batch_end` would then write the student of this step with the teacher of the step before.
    """
    trainer.callbacks = [callback, *_others(trainer, callback)]  # type: ignore[attr-defined]


def put_last(trainer: pl.Trainer, callback: pl.Callback) -> None:
    """Put a callback behind all others, so that it sees what they have made of a step; to be called in its `setup`."""
    trainer.callbacks = [*_others(trainer, callback), callback]  # type: ignore[attr-defined]


def _others(trainer: pl.Trainer, callback: pl.Callback) -> list[pl.Callback]:
    """For a new list, because Lightning is walking through the present one."""
    return [other for other in trainer.callbacks if other is not callback]  # type: ignore[attr-defined]
