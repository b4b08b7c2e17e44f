"""Callbacks that belong to an optimiser step come before those of the Trainer, which then see and save a whole step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from stopped_runs import assert_same
from tiny import loader, tiny_model, trainer

from d2v_lightning import Optimization
from d2v_lightning.callbacks import CollapseMonitor, EMATeacher, ExactResume, Preemption, StepSeed
from d2v_lightning.flavour import pl


class Saves(pl.Callback):
    """A checkpoint of the user's own at the start and after step 3."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        trainer.save_checkpoint(self.folder / "start.ckpt")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 3:  # with accumulation after the next micro-batch again, which must not matter
            trainer.save_checkpoint(self.folder / "step3.ckpt")


class SavesLast(Saves, pl.callbacks.Checkpoint):
    """Lightning puts this one behind the module's callbacks."""


def run(
    folder: Path, resumed: Path | None = None, accumulate: int = 1, callbacks: list[pl.Callback] | None = None
) -> dict[str, Any]:
    model = tiny_model(seed=0 if resumed is None else 9)  # a resumed process may start from any random state
    model.optimization = Optimization(lr=1e-3, schedule="constant", warmup=2)
    monitor = CollapseMonitor(every_n_steps=3, patience=1)
    runner = trainer([*(callbacks or []), monitor], 6, folder, accumulate_grad_batches=accumulate)
    runner.fit(model, loader(), ckpt_path=resumed)
    runner.save_checkpoint(folder / "end.ckpt")
    end: dict[str, Any] = torch.load(folder / "end.ckpt", weights_only=True)
    return end


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_goes_on_exactly_from_what_a_callback_of_the_user_saves(tmp_path: Path, accumulate: int) -> None:
    first, last = tmp_path / "first", tmp_path / "last"
    whole = run(tmp_path / "whole", accumulate=accumulate, callbacks=[Saves(first), SavesLast(last)])
    for saved in (first / "step3.ckpt", last / "step3.ckpt", first / "start.ckpt"):
        end = run(tmp_path / "again", saved, accumulate)
        assert_same(end, whole)
        assert end["callbacks"]["CollapseMonitor"] == whole["callbacks"]["CollapseMonitor"], saved


def test_the_order_of_all_callbacks() -> None:
    class Mine(pl.Callback):
        """Of the user."""

    runner = trainer([Mine(), CollapseMonitor(), Preemption(), pl.callbacks.ModelCheckpoint()], 0)
    runner.fit(tiny_model(), loader())
    order = [type(callback) for callback in runner.callbacks]  # type: ignore[attr-defined]
    assert order[:4] == [ExactResume, EMATeacher, CollapseMonitor, Mine]
    assert order[-2:] == [pl.callbacks.ModelCheckpoint, Preemption]
    assert order.index(StepSeed) > order.index(Mine)  # a batch begins with its seed, whatever others have drawn
