"""The bar, its rate, and the line at the start."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import loader, tiny_model, trainer

from d2v_lightning.callbacks import Progress, RunSummary, progress
from d2v_lightning.callbacks.run_summary import batch_size_of
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


class Data(pl.LightningDataModule):
    batch_size = 16

    def train_dataloader(self) -> Any:
        return loader(64, 16)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "effective batch" in record.getMessage()]


def test_summary_of_a_pretraining_run(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model()
    student = sum(parameter.numel() for parameter in model.student.parameters())
    teacher = sum(parameter.numel() for parameter in model.teacher.parameters())
    with caplog.at_level(logging.INFO):
        trainer([RunSummary()], 2, accumulate_grad_batches=2).fit(model, datamodule=Data())
    assert said(caplog) == [
        f"data2vec: {student / 1e3:.1f} k student parameters (+ {teacher / 1e3:.1f} k teacher), "
        "effective batch 32 = 16 per device x 1 device x 2 accumulated, 2 optimiser steps, 32-true"
    ]


def test_summary_of_any_module_takes_the_first_batch(caplog: pytest.LogCaptureFixture) -> None:
    model = BoringModel()
    model.layer.bias.requires_grad_(False)
    with caplog.at_level(logging.INFO):
        trainer([RunSummary()], 3).fit(model, torch.utils.data.DataLoader(torch.randn(30, 32), batch_size=5))
    assert said(caplog) == [
        "BoringModel: 66 parameters (64 trained), effective batch 5 = 5 per device x 1 device x 1 accumulated, "
        "3 optimiser steps, 32-true"
    ]


def test_samples_in_a_batch() -> None:
    assert batch_size_of({"mask": torch.zeros(2), "inputs": torch.zeros(7, 1)}) == 7
    assert batch_size_of([torch.zeros(4, 2), torch.zeros(9)]) == 4
    assert batch_size_of({"text": ["a", "b"], "labels": torch.zeros(3)}) == 3
    assert batch_size_of(["a"]) is None
