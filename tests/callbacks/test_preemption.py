"""A run that is told to go: it saves after the step, says how to go on, and goes on as if nothing had been."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Blobs, loader, tiny_model, trainer
from torch.utils.data import DataLoader

from d2v_lightning import Data2Vec
from d2v_lightning.callbacks import Preempted, Preemption
from d2v_lightning.flavour import pl
from datamodules import ImageDataModule
from tests.callbacks.preempted_run import STEPS, run

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


class Signal(pl.Callback):
    """Sends this process a signal in one micro-batch."""

    def __init__(self, number: int, at: int) -> None:
        self.number, self.at = number, at

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.at:
            os.kill(os.getpid(), self.number)


def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    expected = run(tmp_path / "whole")
    folder = tmp_path / "cut"
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("preempted_run.py")), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    seen = 0
    for line in process.stdout:
        seen += line.startswith("micro-batch")
        if seen == 8:  # in the middle of the second epoch
            os.killpg(process.pid, signal.SIGTERM)  # as schedulers do: the loading processes too
            break
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 143, errors
    last = folder / "checkpoints" / "last.ckpt"
    assert f"go on with --ckpt_path {last}" in errors
    assert errors.count("SIGTERM: saved") == 1
    saved = torch.load(last, weights_only=True)["global_step"]
    assert 3 < saved < STEPS
    resumed = run(folder, checkpoint=str(last))
    assert (folder / "losses.txt").read_text() == (tmp_path / "whole" / "losses.txt").read_text()
    for one, other in zip(expected.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    # a resumed ModelCheckpoint goes on with the same file, so that "last" stays the last one
    assert not list(last.parent.glob("last-v*"))
    assert torch.load(last, weights_only=True)["global_step"] > saved


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGUSR1", 138), ("SIGINT", 130), ("SIGHUP", 129)])
def test_the_accumulation_window_and_the_teacher_are_finished_first(tmp_path: Path, name: str, code: int) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    runner = trainer([Preemption(), Signal(getattr(signal, name), at=4)], 10, tmp_path, accumulate_grad_batches=4)
    model = tiny_model()
    with pytest.raises(Preempted) as stop:
        runner.fit(model, loader(128))
    assert stop.value.code == code
    assert runner.global_step == 2
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["processed"] == 8
    teacher = tiny_model()
    trainer([], 2, tmp_path, accumulate_grad_batches=4).fit(teacher, loader(128))
    for key, value in teacher.state_dict().items():
        assert torch.equal(saved["state_dict"][key], value), key
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_link_to_another_checkpoint_is_replaced_not_written_through(tmp_path: Path) -> None:
    keeper = pl.callbacks.ModelCheckpoint(
        tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1, save_last="link"
    )
    with pytest.raises(Preempted):
        trainer([Preemption(), Signal(signal.SIGTERM, at=2), keeper], 10, tmp_path).fit(tiny_model(), loader())
    assert torch.load(tmp_path / "step=2.ckpt", weights_only=True)["global_step"] == 2
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3
    assert not (tmp_path / "last.ckpt").is_symlink()


def test_ctrl_c_says_what_it_does_and_a_second_one_does_not_wait(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGINT)
    runner = trainer([Preemption(), Signal(signal.SIGINT, at=1), Signal(signal.SIGINT, at=1)], 10, tmp_path)
    try:
        with pytest.raises(SystemExit) as stop:
            runner.fit(tiny_model(), loader(128))
    finally:
        signal.signal(signal.SIGINT, before)
    assert stop.value.code == 130
    assert runner.global_step == 1
    assert not list(tmp_path.rglob("*.ckpt"))
    said = capfd.readouterr().err
    assert "Ctrl-C: saving after this optimiser step" in said
    assert "SIGINT: stopped, nothing was saved" in said


class SignalIn(pl.Callback):
    """Sends this process SIGTERM in one hook."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGTERM))


def test_a_signal_in_a_validation_saves_after_its_batch_and_the_validation_comes_again(tmp_path: Path) -> None:
    validated: list[tuple[int, str]] = []

    class Note(pl.Callback):
        def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            validated.append((trainer.global_step, float(trainer.callback_metrics["val/loss"]).hex()))

    def fit(*callbacks: pl.Callback, resumed: Path | None = None) -> None:
        runner = trainer([Preemption(), Note(), *callbacks], 7, tmp_path, num_sanity_val_steps=0)
        runner.fit(tiny_model(), loader(40), DataLoader(Blobs(8), batch_size=2), ckpt_path=resumed)

    fit()
    whole, last = validated.copy(), tmp_path / "checkpoints" / "last.ckpt"
    validated.clear()
    with pytest.raises(Preempted) as stop:
        fit(SignalIn("on_validation_batch_start"))
    assert stop.value.code == 143
    assert torch.load(last, weights_only=True)["global_step"] == 5
    fit(resumed=last)
    assert validated == whole
    assert [step for step, _ in whole] == [5]


def test_before_the_first_step_a_signal_ends_the_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    runner = trainer([Preemption(), SignalIn("on_validation_batch_start")], 4, tmp_path, num_sanity_val_steps=1)
    with pytest.raises(Preempted) as stop:
        runner.fit(tiny_model(), loader(), DataLoader(Blobs(8), batch_size=2))
    assert stop.value.code == 143
    assert not list(tmp_path.rglob("*.ckpt"))
    assert capfd.readouterr().err.count("SIGTERM: stopped") == 1


@pytest.mark.parametrize("sanity", [0, 1])
def test_while_the_data_is_made_a_signal_ends_the_run(tmp_path: Path, sanity: int) -> None:
    """Lightning's handler would wait for other processes there, for good: they may be waiting for something else."""

    class Slow(pl.LightningDataModule):
        def train_dataloader(self) -> DataLoader[Any]:
            os.kill(os.getpid(), signal.SIGTERM)
            return loader()

        def val_dataloader(self) -> DataLoader[Any]:
            return DataLoader(Blobs(8), batch_size=2)

    before = [signal.getsignal(number) for number in SIGNALS]
    runner = trainer([Preemption()], 4, tmp_path, num_sanity_val_steps=sanity)
    with pytest.raises(Preempted) as stop:
        runner.fit(tiny_model(), Slow())
    assert stop.value.code == 143
    assert runner.global_step == 0
    assert not runner.received_sigterm
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("stage", ["predict", "test", "validate"])
def test_other_stages_finish_the_batch(tmp_path: Path, stage: str, caplog: pytest.LogCaptureFixture) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    hooks = {
        "predict": "on_predict_batch_start",
        "test": "on_test_batch_start",
        "validate": "on_validation_batch_start",
    }
    seen: list[int] = []
    module = tiny_model()
    step = getattr(module, f"{stage if stage != 'validate' else 'validation'}_step")
    setattr(module, step.__name__, lambda batch, batch_idx: seen.append(batch_idx) or step(batch, batch_idx))
    runner = trainer([Preemption(), SignalIn(hooks[stage])], 4, tmp_path)
    with caplog.at_level("INFO"), pytest.raises(Preempted) as stop:
        getattr(runner, stage)(module, DataLoader(Blobs(8), batch_size=2))
    assert stop.value.code == 143
    assert seen == [0]
    assert "SIGTERM: stopped after this batch" in caplog.text
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path, number: signal.Signals) -> None:
    """As SIGHUP is under nohup."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        runner = trainer([Preemption(), Signal(number, at=1)], 3, tmp_path)
        runner.fit(tiny_model(), loader())
    finally:
        signal.signal(number, before)
    assert runner.global_step == 3


def test_signals_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="SIGNONE"):
        Preemption(signals=["SIGNONE"])


def test_what_the_last_step_has_logged_is_written(tmp_path: Path) -> None:
    def rows(folder: Path, *callbacks: pl.Callback, resumed: Path | None = None) -> dict[str, str]:
        logger = pl.loggers.CSVLogger(folder, name="")
        runner = trainer([Preemption(), *callbacks], 6, folder, logger=logger, log_every_n_steps=1)
        with suppress(Preempted):
            runner.fit(tiny_model(), loader(128), ckpt_path=resumed, weights_only=True)
        with open(Path(logger.log_dir, "metrics.csv")) as file:
            return {row["step"]: row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]}

    whole = rows(tmp_path / "whole")
    cut = rows(tmp_path / "cut", Signal(signal.SIGTERM, at=3))
    rest = rows(tmp_path / "cut", resumed=tmp_path / "cut/checkpoints/last.ckpt")
    assert list(cut) == ["0", "1", "2", "3"]
    assert list(rest) == ["4", "5"]
    assert cut | rest == whole


def test_handlers_are_as_before_when_a_trainer_has_ended() -> None:
    """Else a program that goes on, or a process that it forks, would not hear SIGTERM."""
    handled = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT)
    before = [signal.getsignal(number) for number in handled]
    model, data = Data2Vec.from_recipe("digits"), ImageDataModule.from_recipe("digits", {"num_workers": 0})
    for stage, steps in (("fit", 1), ("fit", 0), ("validate", 1), ("predict", 1)):
        trainer = pl.Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=1,
            limit_predict_batches=1,
            num_sanity_val_steps=1,
            callbacks=[Preemption()],
        )
        getattr(trainer, stage)(model, datamodule=data)
        assert [signal.getsignal(number) for number in handled] == before, stage
