"""A run that is told to go: it saves after the step, says how to go on, and goes on as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from preempted_run import STEPS, run
from pytorch_lightning.callbacks import ModelCheckpoint
from tiny import loader, tiny_model, trainer

from d2v_lightning.callbacks import Preempted, Preemption

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


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
    )
    assert process.stdout is not None
    seen = 0
    for line in process.stdout:
        seen += line.startswith("micro-batch")
        if seen == 8:  # in the middle of the second epoch
            process.send_signal(signal.SIGTERM)
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


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGUSR1", 138), ("SIGINT", 130)])
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
    keeper = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1, save_last="link")
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
    assert not isinstance(stop.value, Preempted)
    assert runner.global_step == 1
    assert not list(tmp_path.rglob("*.ckpt"))
    assert "Ctrl-C: saving after this optimiser step" in capfd.readouterr().err


def test_signals_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="SIGNONE"):
        Preemption(signals=["SIGNONE"])
