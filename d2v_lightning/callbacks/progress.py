"""Progress: a bar with the loss and samples per second, which reads from the device only when it is redrawn."""

from __future__ import annotations

import fnmatch
import time
from typing import Any

from d2v_lightning.callbacks.run_summary import batch_size_of
from d2v_lightning.configurable import Configurable
from d2v_lightning.flavour import pl


class Progress(Configurable, pl.callbacks.TQDMProgressBar):
    """Lightning's bar with `train/loss` and samples/s over all devices; the rate also goes to the loggers.

    Whatever a module logs with `prog_bar=True` is read from the device after every batch, wherever the bar stands: that
    is how Lightning 2.6 collects it. So the loss is not logged that way, and this bar fetches it itself, when it is
    redrawn.

    Args:
        refresh_rate: batches between two redraws; every redraw waits for the device, at 20 for well under a percent.
        shown: names of logged metrics to show beside those logged with `prog_bar=True`, or patterns of them.
    """

    def __init__(self, refresh_rate: int = 20, shown: tuple[str, ...] = ("train/loss", "train/*/loss")) -> None:
        super().__init__(refresh_rate=refresh_rate)
        self.shown = tuple(shown)
        self.samples_per_second: float | None = None
        self._samples = 0
        self._since: float | None = None

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        items = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        logged = trainer.callback_metrics
        for name in (name for pattern in self.shown for name in fnmatch.filter(logged, pattern)):
            if name not in items:
                items[name.removeprefix("train/")] = float(logged[name])
        if self.samples_per_second is not None:
            items["samples/s"] = f"{self.samples_per_second:,.0f}"
        return items

    def on_train_start(self, *args: Any) -> None:
        super().on_train_start(*args)
        self._since, self.samples_per_second = None, None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        if (
            self._since is None
        ):  # the first batch pays for compilation and for workers to start: the clock starts after it
            self._since, self._samples = now, 0
        else:
            self._samples += (batch_size_of(batch) or 0) * trainer.world_size
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._samples and self.refresh_rate and (batch_idx + 1) % self.refresh_rate == 0:
            # After the redraw, which waits for the device: queued steps do not count as done.
            now = time.perf_counter()
            self.samples_per_second = self._samples / (now - self._since)
            self._since, self._samples = now, 0
            for logger in trainer.loggers:
                logger.log_metrics({"train/samples_per_second": self.samples_per_second}, step=trainer.global_step)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        self._since = None  # validation is no training time
