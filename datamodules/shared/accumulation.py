"""The published batch on however many devices there are: accumulation set from the datamodule."""

from __future__ import annotations

from d2v_lightning.flavour import pl, rank_zero_info, rank_zero_warn
from d2v_lightning.support.errors import UserError


def accumulate_to(trainer: pl.Trainer | None, name: str, per_device: int, effective_batch: int, unit: str) -> None:
    """Sets the Trainer's `accumulate_grad_batches` so that an optimiser step sees `effective_batch`.

    Args:
        trainer: None leaves everything as it is.
        name: of the argument that holds `per_device`.
        per_device: what one batch of one device holds.
        effective_batch: what an optimiser step is to hold over all devices.
        unit: of both, in the plural.

    Raises:
        ValueError: one batch on every device is more than `effective_batch`.
    """
    if trainer is None:
        return
    step = per_device * trainer.world_size
    per_step = f"{name} {per_device} x {trainer.world_size} device(s) = {step} {unit}"
    if step > effective_batch:
        raise UserError(
            f"{per_step} is more than effective_batch {effective_batch}: set {name} to at most"
            f" {max(1, effective_batch // trainer.world_size)}"
        )
    accumulation = max(1, round(effective_batch / step))
    trainer.accumulate_grad_batches = accumulation
    if accumulation * step == effective_batch:
        rank_zero_info(f"effective_batch {effective_batch} = {per_step} x {accumulation} accumulated batches")
    else:
        rank_zero_warn(
            f"effective_batch {effective_batch} cannot be reached with {per_step}: using {accumulation * step}"
            f" ({accumulation} accumulated batches)"
        )
