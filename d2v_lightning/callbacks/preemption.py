"""Preemption: Ctrl-C or a scheduler's signal saves a checkpoint after the current optimiser step and ends the process."""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

from d2v_lightning.callbacks.order import put_last
from d2v_lightning.callbacks.prediction_writer import PredictionWriter
from d2v_lightning.configurable import Configurable
from d2v_lightning.flavour import pl, rank_zero_info
from d2v_lightning.support.errors import UserError


class Preempted(SystemExit):
    """The run ends because a signal asked for it. The exit code is 128 + the signal's number."""


class Preemption(Configurable, pl.Callback):
    """At a signal a run finishes its optimiser step, saves `last.ckpt` and exits with 128 + its number (SIGTERM: 143).

    During training these handlers stand in place of Lightning's own. Those stop without saving, also between two accumulated
    micro-batches, and under SLURM they save in the middle of whatever the signal interrupts. Nothing is saved inside a
    handler here: it raises a flag, and the step that is running is finished first, the teacher's move included.
    In a validation the run is saved after the running batch, and does the validation anew when it goes on; with several
    processes, after the step that follows. A second Ctrl-C does not wait, and saves nothing. Before the first step there
    is nothing to save, and the run ends at once. `validate`, `test` and `predict` finish the running batch.

    The exit code tells a job script to queue the job again, e.g. under SLURM (`#SBATCH --signal=SIGUSR1@120`):
    `srun python cli.py fit ...; case $? in 138|143) scontrol requeue $SLURM_JOB_ID;; esac`.

    Args:
        signals: names of the signals. SLURM sends SIGTERM before it kills, and SIGUSR1 where a job asks for it; SIGINT is
            Ctrl-C; SIGHUP is a closed terminal or connection. One that is ignored when the run starts, as SIGHUP is under
            `nohup`, stays ignored.
        agree_every_n_steps: with several processes only some may get the signal; they agree on it every so many optimiser
            steps, in one small reduction that waits for the device. 10 costs nothing measurable, and ten steps fit into
            the half minute that schedulers usually leave.
    """

    def __init__(
        self, signals: Sequence[str] = ("SIGTERM", "SIGUSR1", "SIGINT", "SIGHUP"), agree_every_n_steps: int = 10
    ) -> None:
        unknown = [name for name in signals if not hasattr(signal, name)]
        if unknown:
            raise UserError(
                f"signals names {unknown[0]!r}, which this system does not have: choose e.g. SIGTERM, SIGUSR1"
            )
        if agree_every_n_steps < 1:
            raise UserError(f"agree_every_n_steps is {agree_every_n_steps}: it must be 1 or more")
        self.signals, self.agree_every_n_steps = tuple(signals), agree_every_n_steps
        self._received = 0
        self._under_way = False  # steps are being made, after which a run can be left
        self._last_step = 0
        self._replaced: dict[int, Any] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        put_last(trainer, self)

        # The handlers are set where Lightning sets its own, and with them: its SIGTERM handler waits for other processes.
        connector: Any = trainer._signal_connector
        connector.register_signal_handlers = functools.partial(self._listen, trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last_step = trainer.global_step
        self._under_way = True

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._under_way = not trainer.sanity_checking

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._under_way = True

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._under_way = True

    def _listen(self, trainer: pl.Trainer) -> None:
        """Sets Lightning's handlers, and ours over them. What was there before comes back at the end."""
        before = {number: signal.getsignal(number) for number in (getattr(signal, name) for name in self.signals)}
        connector: Any = trainer._signal_connector
        del connector.register_signal_handlers  # gives the class's own back
        connector.register_signal_handlers()
        if threading.current_thread() is not threading.main_thread():  # others may have no handlers
            return
        self._received, self._under_way = 0, False

        def note(number: int, frame: FrameType | None) -> None:
            first, self._received = not self._received, number
            fits = self._under_way and trainer.state.fn == pl.trainer.states.TrainerFn.FITTING
            if number == signal.SIGINT:  # a terminal sends it to all processes by itself
                if trainer.is_global_zero and first and self._under_way:
                    # not by print, which the signal may have come in the middle of
                    then = "saving after this optimiser step" if fits else "stopping after this batch"
                    os.write(2, f"\nCtrl-C: {then}; once more stops at once{', unsaved' * fits}\n".encode())
            elif first and trainer.strategy.launcher is not None:
                trainer.strategy.launcher.kill(number)  # pass it on to the processes that this one has started
            if not self._under_way or (number == signal.SIGINT and not first):
                os.write(2, f"{signal.Signals(number).name}: stopped{', nothing was saved' * fits}\n".encode())
                raise Preempted(128 + number)

        for number, handler in before.items():
            self._replaced.setdefault(number, handler)
            signal.signal(number, signal.SIG_IGN if handler == signal.SIG_IGN else note)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._last_step:  # in the middle of an accumulation window
            return
        self._last_step = trainer.global_step
        if trainer.world_size > 1:
            if trainer.global_step % self.agree_every_n_steps:
                return
            if not trainer.strategy.reduce_boolean_decision(bool(self._received), all=False):
                return
            self._received = int(trainer.strategy.broadcast(self._received)) or self._received or signal.SIGTERM
        if self._received:
            # What the step has logged, which the Trainer would write after these hooks.
            trainer._logger_connector.update_train_step_metrics()
            self._save_and_exit(trainer)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        if trainer.state.fn != pl.trainer.states.TrainerFn.FITTING:
            self._stop(trainer)
        elif self._received and trainer.world_size == 1:
            self._save_and_exit(trainer)

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any) -> None:
        self._stop(trainer)

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        self._stop(trainer)

    def _stop(self, trainer: pl.Trainer) -> None:
        """End an evaluation, or a prediction, whose batches are on the disk."""
        if self._received:
            kept = [f": {one.kept()}" for one in trainer.callbacks if isinstance(one, PredictionWriter)]  # type: ignore[attr-defined]
            rank_zero_info(f"{signal.Signals(self._received).name}: stopped after this batch{''.join(kept)}")
            raise Preempted(128 + self._received)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restore_handlers()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != pl.trainer.states.TrainerFn.FITTING:
            self._restore_handlers()

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restore_handlers()

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restore_handlers()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._restore_handlers()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._restore_handlers()  # of a run without a step

    def _save_and_exit(self, trainer: pl.Trainer) -> None:
        checkpoint = next(
            (c for c in trainer.checkpoint_callbacks if isinstance(c, pl.callbacks.ModelCheckpoint)), None
        )
        folder = checkpoint.dirpath if checkpoint is not None else None
        folder = trainer.strategy.broadcast(folder or os.path.join(trainer.default_root_dir, "checkpoints"))
        path = os.path.join(folder, "last.ckpt")
        if trainer.is_global_zero and os.path.islink(path):
            os.remove(path)  # ModelCheckpoint(save_last="link"): to write through the link would spoil another file
        if checkpoint is not None:
            if checkpoint.save_last:
                checkpoint.last_model_path = path  # so that a resumed run goes on with this file, not with last-v1.ckpt
            checkpoint.save_on_exception = False  # the exit is no exception to be saved again
        trainer.save_checkpoint(path, weights_only=False)
        name = signal.Signals(self._received).name
        rank_zero_info(f"{name}: saved after optimiser step {trainer.global_step}; go on with --ckpt_path {path}")
        raise Preempted(128 + self._received)

    def _restore_handlers(self) -> None:
        while self._replaced:
            number, handler = self._replaced.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
