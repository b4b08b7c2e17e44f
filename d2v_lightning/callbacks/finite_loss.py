"""FiniteLoss: a loss that is NaN or infinite ends the run, with the batch named and nothing saved after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from d2v_lightning.flavour import pl
from d2v_lightning.support.errors import UserError

NAMED_SAMPLES = 16


class NonFiniteLossError(UserError):
    """The loss of a batch was NaN or infinite; the message names the batch."""


class _Pending:
    """A flag "this loss is finite" on its way from the device, and what is to be said if it is not."""

    def __init__(self, loss: Tensor, where: str, batch: Any) -> None:
        self.where, self.batch = where, batch
        finite = torch.isfinite(loss.detach()).all()
        self.event: torch.cuda.Event | None = None
        if loss.is_cuda:
            self.finite = torch.empty((), dtype=torch.bool, pin_memory=True)
            self.finite.copy_(finite, non_blocking=True)
            self.loss = torch.empty((), dtype=torch.float32, pin_memory=True)
            self.loss.copy_(loss.detach().float(), non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()
        else:
            self.finite, self.loss = finite, loss.detach().float()

    def check(self) -> None:
        """Wait for the flag and look at it.

        Raises:
            NonFiniteLossError: the loss was not finite.
        """
        if self.event is not None:
            self.event.synchronize()
        if not bool(self.finite):
            raise NonFiniteLossError(
                f"loss is {float(self.loss)} at {self.where}{named_samples(self.batch)}. Nothing was saved after it: "
                "resume from the last checkpoint with a lower learning rate, a longer warm-up, gradient clipping "
                "or 'bf16-mixed' instead of '16-mixed'; look at these samples; or leave them out with on_nonfinite 'skip'"
            )


class FiniteLoss(pl.Callback):
    """Stops the run at the first loss that is not finite.

    On a CPU that is before the backward pass, so the weights are untouched. On a GPU waiting for each loss would stall
    it, so the flag is copied beside the computation and looked at one micro-batch later, when it is long there: by then
    the bad loss may have reached the weights. Either way no checkpoint is written any more: what is pending is looked at
    before every save, and after an error all checkpoint callbacks are taken out of the Trainer, those too that would save
    on an exception. `Data2Vec(on_nonfinite="stop")` brings this callback along.
    """

    def __init__(self) -> None:
        self._pending: _Pending | None = None
        self._batch: Any = None
        self._batch_idx = 0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._batch, self._batch_idx = batch, batch_idx

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        where = f"epoch {trainer.current_epoch}, batch {self._batch_idx}, optimiser step {trainer.global_step + 1}"
        previous, self._pending = self._pending, _Pending(loss, where, _names(self._batch, inputs=not loss.is_cuda))
        if previous is not None:
            self._check(trainer, previous)
        if not loss.is_cuda:
            self._settle(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batch = None  # it need not live until the next one is there

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._settle(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._settle(trainer)

    def _settle(self, trainer: pl.Trainer) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            self._check(trainer, pending)

    def _check(self, trainer: pl.Trainer, pending: _Pending) -> None:
        try:
            pending.check()
        except NonFiniteLossError:
            self._pending = None
            # A new list: the one at hand is being walked through.
            callbacks = trainer.callbacks  # type: ignore[attr-defined]
            trainer.callbacks = [  # type: ignore[attr-defined]
                callback for callback in callbacks if not isinstance(callback, pl.callbacks.Checkpoint)
            ]
            raise


def _names(batch: Any, inputs: bool) -> dict[str, Any]:
    """What is kept of a batch: indices, and its inputs where nobody has to wait for them."""
    if not isinstance(batch, dict):
        return {}
    return {name: batch[name] for name in ("index", "modality", *(("inputs",) if inputs else ())) if name in batch}


def named_samples(batch: Mapping[str, Any]) -> str:
    """The samples of a batch by their `index`, those with inputs that are not finite where there are any; or nothing."""
    index, inputs = batch.get("index"), batch.get("inputs")
    if index is None:
        return ""
    of = f" of {batch['modality']}" if "modality" in batch else ""
    if inputs is not None and inputs.is_floating_point():
        bad = ~torch.isfinite(inputs).flatten(1).all(dim=1)
        if bad.any():
            return f"; inputs that are not finite: samples {_list(index[bad])}{of}"
    return f"; samples {_list(index)}{of}"


def _list(index: Tensor) -> str:
    values = index.tolist()
    more = f" and {len(values) - NAMED_SAMPLES} more" if len(values) > NAMED_SAMPLES else ""
    return ", ".join(map(str, values[:NAMED_SAMPLES])) + more
