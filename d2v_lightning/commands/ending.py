"""How a command ends: Ctrl-C does not disturb what has begun to end, and what fails then does not hide why it ends."""

from __future__ import annotations

import functools
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from d2v_lightning.flavour import fabric, pl, rank_zero_warn
from d2v_lightning.support.errors import flat

_Watch = fabric.strategies.launchers.subprocess_script._ChildProcessObserver
_Launcher = pl.strategies.launchers.subprocess_script._SubprocessScriptLauncher
_ending = threading.Event()
_PATIENCE = 5.0  # seconds that other processes of the run have to end by themselves


def listen() -> None:
    """From now on the first Ctrl-C raises `KeyboardInterrupt`, and one after `end` does nothing.

    Loading processes are being told to end then, and files put in order: a second `KeyboardInterrupt` would come up in the
    middle of that. Where SIGINT is ignored, or has a handler of another program's, that stays.
    """
    _ending.clear()
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) in (
        signal.default_int_handler,
        _interrupt,
    ):
        signal.signal(signal.SIGINT, _interrupt)
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _unraisable


def end() -> None:
    """The command ends, and with it the process."""
    _ending.set()


def _interrupt(number: int, frame: FrameType | None) -> None:
    if not _ending.is_set():
        _ending.set()
        raise KeyboardInterrupt


def _unraisable(lost: sys.UnraisableHookArgs) -> None:
    """Called where nothing can be raised, such as a callback of the system's: an exit that came up there is no error."""
    if isinstance(lost.exc_value, KeyboardInterrupt):
        _ending.clear()  # the next one may be raised
    elif not isinstance(lost.exc_value, SystemExit):
        sys.__unraisablehook__(lost)


class FirstError(pl.Callback):
    """Keeps the error that ends a run: what fails in a callback or logger while it ends becomes a note of it.

    Without this the Trainer would stop there: the rest of the callbacks, which may save, would not be called, and loading
    processes would live on. It must be the first of the Trainer's callbacks, of a process that ends with the run.

    The processes that Lightning has started end with this one. Lightning's watch over them is called off. It would kill this
    process seconds after one of them has ended, even while this one saves or closes a logger.

    A Ctrl-C after the last step does nothing: what is left is to save and to put things in order.
    """

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        end()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        end()
        for thread in threading.enumerate():
            if isinstance(thread, _Watch):
                thread._child_processes = []
        callbacks = [callback for callback in trainer.callbacks if callback is not self]  # type: ignore[attr-defined]
        hooks = [(owner, "on_exception") for owner in (*callbacks, trainer.strategy)]
        if trainer.datamodule is not None:  # type: ignore[attr-defined]
            hooks.append((trainer.datamodule, "on_exception"))  # type: ignore[attr-defined]
        hooks += [(logger, "finalize") for logger in trainer.loggers]
        for owner, name in [*hooks, (trainer.strategy, "teardown")]:
            setattr(owner, name, functools.partial(_call, owner, name, getattr(owner, name), exception))
        launcher = trainer.strategy.launcher
        if isinstance(launcher, _Launcher):
            # An exit was asked of all of them, and they are at it.
            first = signal.SIGTERM if isinstance(exception, Exception) else None
            trainer.strategy.teardown = functools.partial(  # type: ignore[method-assign]
                _end_all, trainer.strategy.teardown, launcher, first
            )


def _end_all(before: Callable[[], None], launcher: _Launcher, first: signal.Signals | None) -> None:
    before()
    if first is not None:
        launcher.kill(first)
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until and any(process.poll() is None for process in launcher.procs):
        time.sleep(0.05)
    launcher.kill(signal.SIGKILL)  # one that waits for this process in a collective operation does not hear SIGTERM


def _call(owner: object, name: str, hook: Any, first: BaseException, *args: Any, **options: Any) -> None:
    try:
        hook(*args, **options)
    except Exception as error:
        if str(error) == str(first):  # both want the same file, which is not there
            return
        note = f"{type(owner).__name__}.{name} failed then: {type(error).__name__}: {flat(error)}"
        if isinstance(first, Exception):
            first.add_note(note)
        else:  # an exit, which is no message
            rank_zero_warn(note)
