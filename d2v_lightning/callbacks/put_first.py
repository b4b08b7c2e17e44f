"""The order of callbacks: what belongs to an optimiser step is done before anything of the user's looks at the step."""

from __future__ import annotations

from d2v_lightning.flavour import pl


def put_first(trainer: pl.Trainer, callback: pl.Callback) -> None:
    """Put a callback before all others; to be called in its `setup`.

    Lightning puts the callbacks of a module behind those of the Trainer. A callback of the user that saves in
    `on_train_batch_end` would then write the student of this step with the teacher of the step before.
    """
    others = [other for other in trainer.callbacks if other is not callback]  # type: ignore[attr-defined]
    # A new list, because Lightning is walking through the present one.
    trainer.callbacks = [callback, *others]  # type: ignore[attr-defined]
