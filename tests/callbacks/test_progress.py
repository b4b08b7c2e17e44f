"""Progress: the bar, and its rate."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from tiny import loader, tiny_model, trainer

from d2v_lightning.callbacks import Progress, progress
from d2v_lightning.flavour import pl

BoringModel = importlib.import_module(f"{pl.__name__}.demos.boring_classes").BoringModel


class Clock:
    """`time.perf_counter` that moves by a second for every batch."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Ticks(pl.Callback):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_start(self, *args: Any) -> None:
        self.clock.now += 1.0


def test_rate_counts_all_samples_and_the_bar_reads_metrics_only_when_redrawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    bar, reads = Progress(refresh_rate=4), []
    original = bar.get_metrics
    monkeypatch.setattr(bar, "get_metrics", lambda *args: reads.append(original(*args)) or reads[-1])
    logger = pl.loggers.CSVLogger(str(tmp_path))
    logged: list[tuple[int, float]] = []
    log_metrics = logger.log_metrics

    def keep(metrics: dict[str, float], step: int | None = None) -> None:
        if "train/samples_per_second" in metrics:
            logged.append((int(step or 0), metrics["train/samples_per_second"]))
        log_metrics(metrics, step)

    monkeypatch.setattr(logger, "log_metrics", keep)
    trainer([bar, Ticks(clock)], 12, tmp_path, logger=logger).fit(tiny_model(), loader(256))
    # the first batch only starts the clock: 3 batches of 8 in 3 seconds, then 4 in 4
    assert logged == [(4, 8.0), (8, 8.0), (12, 8.0)]
    assert len(reads) <= 5  # three redraws, the end of the epoch
    assert reads[1]["samples/s"] == "8"
    assert all("v_num" not in read for read in reads)
    assert any(name.endswith("loss") for name in reads[-1])


def test_the_bar_shows_a_loss_that_is_not_logged_to_it() -> None:
    class Quiet(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.step(batch)
            self.log("train/loss", loss)
            self.last = float(loss.detach())
            return loss

    bar, model = Progress(refresh_rate=1), Quiet()
    runner = trainer([bar], 3)
    runner.fit(model)
    assert bar.get_metrics(runner, model)["loss"] == pytest.approx(model.last)
