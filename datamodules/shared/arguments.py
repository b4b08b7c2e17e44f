"""Checks of arguments that several datamodules have."""

from __future__ import annotations

from collections.abc import Sequence

from d2v_lightning.flavour import pl
from d2v_lightning.support.errors import UserError


def one_of(choices: Sequence[str], **given: str) -> None:
    """Raises ValueError where an argument is none of the choices."""
    for name, value in given.items():
        if value not in choices:
            raise UserError(f"{name} {value!r}: permitted are {', '.join(map(repr, choices))}")


def held_out_share(val_fraction: float | None) -> None:
    """Raises ValueError where `val_fraction` is set and not between 0 and 1."""
    if val_fraction is not None and not 0 < val_fraction < 1:
        raise UserError(f"val_fraction {val_fraction}: permitted is 0 < val_fraction < 1")


def enough_for_a_batch(trainer: pl.Trainer | None, batch_size: int, count: int, what: str) -> None:
    """Raises ValueError where there are fewer samples than one batch on every device needs.

    Args:
        trainer: None for one device.
        batch_size: samples per device.
        count: of samples.
        what: the samples are, in the plural.
    """
    devices = 1 if trainer is None else trainer.world_size
    if batch_size * devices > count:
        raise UserError(
            f"batch_size {batch_size} x {devices} device(s) is more than {count} {what}: set batch_size to at most "
            f"{max(1, count // devices)}"
        )
