"""Kills tiny training runs, goes on with `--ckpt_path last`, and compares with the run that was left alone.

    python -m tests.chaos.kill --runs 80 --events 60 --signals 50 --workers 10

--runs: SIGKILL at a random time. --events: SIGKILL at the n-th hook of Lightning, or in the middle of writing a checkpoint.
--signals: SIGTERM, SIGUSR1, SIGHUP, SIGINT, once or twice, to one process or to all of them. --workers: SIGKILL of a loading
process. Weights, teacher, optimiser, schedule, callbacks and place in the data must be equal bit for bit in the end.
A signal must save (unless it came before the first step), must say nothing but lines, and must leave no process behind.
"""

from __future__ import annotations

import argparse
import builtins
import collections
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning.trainer.call as hooks

from tests.chaos.child import Child, run, warm
from tests.chaos.world import compare, make_data, metrics, tasks

SENT = (["TERM"], ["USR1"], ["HUP"], ["INT"], ["TERM", "TERM"], ["INT", "INT"], ["TERM", "INT"], ["USR1", "TERM"])
CALLERS = ("_call_callback_hooks", "_call_lightning_module_hook", "_call_strategy_hook")
BY_EPOCHS = ["--trainer.max_steps", "-1", "--trainer.max_epochs", "4"]


class Reference:
    """A run that nobody disturbed: when its training began, and at which hook."""

    def __init__(self, work: Path, name: str, arguments: list[str]) -> None:
        self.folder, marks = work / name, work / f"{name}.marks"
        marks.unlink(missing_ok=True)
        done = run("cli", fit(arguments, self.folder, 0, 3), work, work / f"{name}.log", before=lambda: _note(marks))
        assert done.code == 0, done.text[-2000:]
        lines = [line.split() for line in marks.read_text().splitlines()]
        self.began, self.length = float(lines[0][0]), done.seconds
        self.hooks = int(lines[0][1]), int(lines[-1][1])
        self.metrics = metrics(self.folder)


def fit(arguments: list[str], out: Path, workers: int, every: int) -> list[str]:
    more = f"--data.num_workers {workers} --model_checkpoint.every_n_train_steps {every} --ckpt_path last"
    return [*arguments, *more.split(), "--trainer.default_root_dir", str(out)]


def _at_each_hook(act: Callable[[int, tuple[Any, ...]], None]) -> None:
    count = 0
    for name in CALLERS:
        original = getattr(hooks, name)

        def wrapped(*args: Any, _original: Any = original, **options: Any) -> Any:
            nonlocal count
            count += 1
            act(count, args)
            return _original(*args, **options)

        setattr(hooks, name, wrapped)


def _note(marks: Path) -> None:
    began = time.monotonic()

    def note(count: int, args: tuple[Any, ...]) -> None:
        if {"on_train_start", "on_train_end"} & {arg for arg in args if isinstance(arg, str)}:
            with open(marks, "a") as file:
                print(time.monotonic() - began, count, file=file)

    _at_each_hook(note)


def _die_at_hook(number: int) -> None:
    def look(count: int, args: tuple[Any, ...]) -> None:
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    _at_each_hook(look)


def _die_in_write(number: int) -> None:
    """SIGKILL in the middle of the write that passes `number` bytes of checkpoints."""
    original, seen = builtins.open, 0

    class Counted:
        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, data: Any) -> int:
            nonlocal seen
            seen += len(data)
            if seen >= number:
                self.file.write(bytes(data)[: max(1, len(data) // 2)])
                self.file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            return int(self.file.write(data))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def __enter__(self) -> Counted:
            return self

        def __exit__(self, *error: object) -> None:
            self.file.close()

    def opening(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        opened = original(file, mode, *args, **options)
        return Counted(opened) if mode == "wb" and ".ckpt" in str(file) else opened

    builtins.open = opening  # type: ignore[assignment]


class Campaign:
    def __init__(self, work: Path, seed: int) -> None:
        self.work, self.draw = work, random.Random(seed)
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.deaths = self.orphans = self.left = self.missing = 0

    def one(self, how: str, number: int, task: str, arguments: list[str], reference: Reference) -> None:
        draw = self.draw
        workers = 2 if how == "workers" else draw.choice((0, 2))
        out, log = self.work / f"run_{how}_{number}", self.work / f"run_{how}_{number}.log"
        shutil.rmtree(out, ignore_errors=True)
        log.unlink(missing_ok=True)
        command = fit(arguments, out, workers, draw.choice((1, 1, 2, 3)))
        said: list[str] = []
        faults: list[str] = []
        for attempt in range(4):
            disturbed = attempt == 0 or (attempt < 3 and draw.random() < 0.3)
            before = self._event(said, reference) if disturbed and how == "events" else None
            child = Child("cli", command, self.work, log, before=before)
            if disturbed and how != "events":
                self._disturb(how, child, reference, workers, said, faults)
            child.wait(120)
            self.deaths += child.code == -signal.SIGKILL
            said.append(f"exit {child.code}")
            orphaned = child.code is not None and _still_there(child)
            self.orphans += orphaned
            faults += ["processes stay behind"] if orphaned else []
            child.finish(0)
            if child.code in (0, None):
                break
        if child.traceback and how == "signals":  # after SIGKILL, loading processes say what they like
            faults.append("traceback")
        ended = child.code == 0
        faults += [] if ended else ["it hangs" if child.code is None else "it does not end"]
        faults += [f"different: {place}" for place in compare(reference.folder, out)[:3]] if ended else []
        self.left += len(list(out.rglob(".*.unfinished")))
        self.missing += len(set(reference.metrics) - set(metrics(out))) if ended else 0
        self.outcomes["equal" if not faults else faults[0].partition(":")[0]] += 1
        if faults:
            print(f"{how} {number} {task}, {workers} workers: {'; '.join(said)}: {faults} [{log}]", flush=True)
        else:
            shutil.rmtree(out)

    def _event(self, said: list[str], reference: Reference) -> Callable[[], None]:
        if self.draw.random() < 0.67:
            place = self.draw.randint(*reference.hooks)
            said.append(f"SIGKILL at hook {place}")
            return lambda: _die_at_hook(place)
        size = int(10 ** self.draw.uniform(2, 7))
        said.append(f"SIGKILL after {size} bytes")
        return lambda: _die_in_write(size)

    def _disturb(
        self, how: str, child: Child, reference: Reference, workers: int, said: list[str], faults: list[str]
    ) -> None:
        draw = self.draw
        early = draw.random() < 0.15
        moment = draw.uniform(0.1, 1.0) * reference.began if early else draw.uniform(reference.began, reference.length)
        child.wait(moment * (1.3 if workers else 1))
        if how == "runs":
            said.append(f"SIGKILL at {moment:.2f} s")
            child.kill(signal.SIGKILL)
        elif how == "workers":
            loading = [pid for pid in child.family() if pid != child.pid] if child.alive() else []
            said.append(f"{len(loading)} loading processes at {moment:.2f} s")
            for pid in loading[:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        else:
            names, group = draw.choice(SENT), draw.random() < 0.5
            said.append(f"{'+'.join(names)}{' to all' if group else ''} at {moment:.2f} s")
            for name in names:
                if child.alive():
                    child.kill(getattr(signal, f"SIG{name}"), group)
                child.wait(draw.uniform(0, 0.2))
            child.wait(120)
            numbers = [int(getattr(signal, f"SIG{name}")) for name in names]
            # Before training the signal's own default ends the process; nothing is there to save.
            if child.code not in (0, *(128 + n for n in numbers), *(-n for n in numbers)):
                faults.append(f"exit {child.code} after {names}")


def _still_there(child: Child) -> bool:
    end = time.monotonic() + 12
    while child.family() and time.monotonic() < end:
        time.sleep(0.1)
    return bool(child.family())


def _plan(args: argparse.Namespace) -> Iterator[tuple[str, int]]:
    for how in ("runs", "events", "signals", "workers"):
        yield from ((how, number) for number in range(getattr(args, how)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("runs", 80), ("events", 60), ("signals", 50), ("workers", 10), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--tasks", default="image,image2,audio,ctc,text")
    parser.add_argument("--keep", help="folder to work in, which is kept")
    args = parser.parse_args()
    began = time.monotonic()
    warm()
    work = Path(args.keep or tempfile.mkdtemp(prefix="chaos"))
    bases = tasks(work / "tasks", make_data(work / "data"))
    campaign = Campaign(work, args.seed)
    references: dict[str, Reference] = {}
    for how, number in _plan(args):
        task = campaign.draw.choice(args.tasks.split(","))
        accumulate, by_epochs = campaign.draw.choice((1, 2)), campaign.draw.random() < 0.5
        arguments = [
            *bases[task],
            "--trainer.accumulate_grad_batches",
            str(accumulate),
            *(BY_EPOCHS if by_epochs else []),
        ]
        name = f"reference_{task}_{accumulate}{'_epochs' if by_epochs else ''}"
        if name not in references:
            references[name] = Reference(work, name, arguments)
        campaign.one(how, number, task, arguments, references[name])
    total = sum(campaign.outcomes.values())
    print(
        f"{total} disturbed runs, {campaign.deaths} deaths by SIGKILL: {dict(campaign.outcomes)}; {campaign.orphans} left "
        f"processes behind, {campaign.left} unfinished files, {campaign.missing} values in no metrics.csv; "
        f"{time.monotonic() - began:.0f} s"
    )
    sys.exit(campaign.outcomes["equal"] < total)


if __name__ == "__main__":
    main()
