"""A run that has begun to end ends: with its first error, saved, and whatever else fails or is pressed then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from tiny import loader, tiny_model, trainer

from d2v_lightning.callbacks.save_on_error import SaveOnError
from d2v_lightning.commands import ending
from d2v_lightning.commands.ending import FirstError
from d2v_lightning.commands.running import run_command
from d2v_lightning.flavour import fabric, pl
from d2v_lightning.support.errors import UserError


class Fails(pl.Callback):
    """Ends the run in its third step, and fails once more while it ends."""

    def __init__(self, first: BaseException) -> None:
        self.first = first

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            raise self.first

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        raise RuntimeError("no\nconnection")


class Closed(pl.loggers.CSVLogger):
    """Cannot be closed."""

    def finalize(self, status: str) -> None:
        raise OSError(28, "No space left on device", "metrics.csv")


@pytest.mark.parametrize("first", [UserError("a bad picture"), SystemExit(143)])
def test_the_first_error_is_kept_and_the_run_is_saved(tmp_path: Path, first: BaseException) -> None:
    keeper = pl.callbacks.ModelCheckpoint(tmp_path, save_last=True)
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


@pytest.mark.parametrize("first", [UserError("a bad picture"), SystemExit(143)])
def test_processes_of_the_run_end_with_it_and_do_not_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: BaseException
) -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
    ended = subprocess.Popen([sys.executable, "-c", "raise SystemExit(143)"])
    assert other.stdout is not None
    other.stdout.readline()
    ended.wait()
    watch = ending._Watch(main_pid=os.getpid(), child_processes=[other, ended])
    killed: list[bool] = []
    monkeypatch.setattr(watch, "_terminate_all", lambda: killed.append(True))
    monkeypatch.setattr(watch, "run", threading.Event().wait)
    monkeypatch.setattr(ending, "_PATIENCE", 0.1)
    watch.start()
    runner = trainer([FirstError(), Fails(first)], 10, tmp_path)
    launcher = ending._Launcher(fabric.plugins.environments.LightningEnvironment(), num_processes=3, num_nodes=1)
    monkeypatch.setattr(launcher, "launch", lambda function, *args, trainer, **options: function(*args, **options))
    runner.strategy._launcher = launcher
    launcher.procs = [other, ended]
    with pytest.raises(type(first)):
        runner.fit(tiny_model(), loader(128))
    watch._run()
    assert not killed
    assert other.wait() == -signal.SIGKILL
    other.stdout.close()


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


def test_ctrl_c_after_the_last_step_does_not_disturb_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = trainer([FirstError()], 2, tmp_path)
    tear_down = runner._teardown

    def interrupted() -> None:
        signal.raise_signal(signal.SIGINT)
        tear_down()

    monkeypatch.setattr(runner, "_teardown", interrupted)
    assert run_command(lambda: runner.fit(tiny_model(), loader(128))) == 0
    assert runner.global_step == 2


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
