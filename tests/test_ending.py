"""A run that has begun to end ends: with its first error, saved, and whatever else fails or is pressed then."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from tiny import loader, tiny_model, trainer

from d2v_lightning.callbacks.save_on_error import SaveOnError
from d2v_lightning.commands import run_command
from d2v_lightning.ending import FirstError
from d2v_lightning.errors import UserError


class Fails(pl.Callback):
    """Ends the run in its third step, and fails once more while it ends."""

    def __init__(self, first: BaseException) -> None:
        self.first = first

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            raise self.first

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        raise RuntimeError("no\nconnection")


class Closed(CSVLogger):
    """Cannot be closed."""

    def finalize(self, status: str) -> None:
        raise OSError(28, "No space left on device", "metrics.csv")


@pytest.mark.parametrize("first", [UserError("a bad picture"), SystemExit(143)])
def test_the_first_error_is_kept_and_the_run_is_saved(tmp_path: Path, first: BaseException) -> None:
    keeper = ModelCheckpoint(tmp_path, save_last=True)
    loggers = [Closed(tmp_path)]
    runner = trainer([FirstError(), Fails(first), keeper, SaveOnError()], 10, tmp_path, logger=loggers)
    with pytest.raises(type(first)) as stop:
        runner.fit(tiny_model(), loader(128))
    assert stop.value is first
    assert runner.fit_loop._data_fetcher is None  # the loader's processes were told to end
    if isinstance(first, UserError):
        assert (tmp_path / "last.ckpt").exists()
        assert first.__notes__ == [
            "Fails.on_exception failed then: RuntimeError: no connection",
            f"Saved after optimiser step 2: go on with --ckpt_path {tmp_path / 'last.ckpt'}",
            "Closed.finalize failed then: OSError: [Errno 28] No space left on device: 'metrics.csv'",
        ]


def test_ctrl_c_again_does_not_disturb_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    done: list[str] = []

    def command() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            done.append("put in order")

    assert run_command(command) == 130
    os.kill(os.getpid(), signal.SIGINT)  # while Python ends
    assert done == ["put in order"]
    assert capsys.readouterr().err == "stopped by Ctrl-C\n"
    assert run_command(lambda: done.append("anew")) == 0


def test_a_ctrl_c_that_cannot_be_raised_says_nothing_and_may_come_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)

    class Gone:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    def command() -> None:
        thing = Gone()
        del thing
        os.kill(os.getpid(), signal.SIGINT)

    assert run_command(command) == 130
    assert capsys.readouterr().err == "stopped by Ctrl-C\n"
