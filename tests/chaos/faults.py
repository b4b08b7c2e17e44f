"""Faults around a command: full disks, vanished folders, two runs at once, scarce files and memory, broken pipes, odd places.

    python -m tests.chaos.faults [--only WORD]

Needs root: each case may mount file systems, which vanish with this process. A case is handled where the command ends by
itself, without a traceback, with one line or its full work done, and with what was there before still whole.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.chaos.child import Child, bound_by_permissions, mount, own_mounts, run, warm
from tests.chaos.world import ROOT, make_data, tasks

READ_ONLY = 1  # MS_RDONLY
CPU = ["--trainer.accelerator", "cpu", "--data.num_workers", "0"]


class Campaign:
    def __init__(self, work: Path, only: str) -> None:
        self.work, self.only = work, only
        self.data = make_data(work / "data")
        self.tasks = tasks(work / "tasks", self.data)
        self.handled: dict[str, bool] = {}
        self.case = ""

    def wanted(self, name: str) -> bool:
        self.case = name
        return self.only in name

    def fresh(self) -> Path:
        folder = self.work / self.case.replace(" ", "_").replace(",", "").replace("/", "_")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    @property
    def log(self) -> Path:
        return self.work / f"{self.case.replace(' ', '_').replace('/', '_')}.log"

    def fit(self, task: str, out: Path, *more: Any, workers: int = 0, steps: int = 24, every: int = 1) -> list[Any]:
        options = (
            f"--data.num_workers {workers} --model_checkpoint.every_n_train_steps {every} --trainer.max_steps {steps}"
        )
        return [*self.tasks[task], "--trainer.default_root_dir", out, *options.split(), *more]

    def run(self, command: str, arguments: Sequence[Any], **options: Any) -> Child:
        return run(command, arguments, self.work, self.log, **options)

    def start(self, arguments: Sequence[Any], **options: Any) -> Child:
        self.log.unlink(missing_ok=True)
        return Child("cli", arguments, self.work, self.log, **options)

    def say(self, child: Child, good: bool, note: Any = "") -> None:
        """Judge a case: `good` is what else must hold."""
        ended = child.code is not None and (child.code == 0 or child.code >= 128 or child.error.startswith("error:"))
        name, fine = self.case, bool(good) and ended and not child.traceback
        self.handled[name] = fine and self.handled.get(name, True)
        what = f"exit {child.code}{', TRACEBACK' if child.traceback else ''}{'' if good else ', NOT WHOLE'} {note}"
        print(f"{'ok  ' if fine else 'LOOK'} {name}: {what}\n       {child.error[:300]}", flush=True)

    @functools.cache  # noqa: B019  # as long as the process
    def checkpoint(self, task: str) -> Path:
        out = self.work / f"reference_{task}"
        if not (out / "checkpoints/last.ckpt").exists():
            done = run("cli", self.fit(task, out, steps=3, every=2), self.work, self.work / f"{out.name}.log")
            assert done.code == 0, done.text
        return out / "checkpoints/last.ckpt"

    def predict(self, task: str, output: Path) -> list[Any]:
        source = ["--data.root", self.data / "spoken/train"] if task == "ctc" else []
        return ["predict", "--ckpt_path", self.checkpoint(task), "--predictions.output", output, *CPU, *source]

    def features(self, output: Path) -> list[Any]:
        return [self.data / "pictures/*/*/*", "--checkpoint", self.checkpoint("image"), "--out", output]


def whole(path: Path) -> bool:
    try:
        torch.load(path, weights_only=True)
    except Exception:  # whatever a damaged file makes of it
        return False
    return True


def step_of(path: Path) -> int | None:
    return torch.load(path, weights_only=True)["global_step"] if path.is_file() and whole(path) else None


# ---- disks -----------------------------------------------------------------------------------------------------------


def disks(c: Campaign) -> None:
    for size in ("200k", "1500k", "2500k", "4m"):
        if c.wanted(f"disk full {size}"):
            folder = c.fresh()
            mount(folder, size)
            child = c.run("cli", c.fit("image", folder / "run"))
            kept, left = sorted(folder.rglob("*.ckpt")), list(folder.rglob("*.unfinished"))
            c.say(child, child.code != 0 and not left and all(map(whole, kept)), [path.name for path in kept])
    if c.wanted("disk full at resume"):
        folder = c.fresh()
        mount(folder, "24m")
        c.run("cli", c.fit("image", folder / "run", steps=3))
        last = folder / "run/checkpoints/last.ckpt"
        before = step_of(last)
        with contextlib.suppress(OSError), open(folder / "filler", "wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        child = c.run("cli", c.fit("image", folder / "run", "--ckpt_path", "last"))
        c.say(child, step_of(last) is not None, f"step {before} before, {step_of(last)} after")
    if c.wanted("file size limit"):

        def limit() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

        c.say(c.run("cli", c.fit("image", c.fresh() / "run"), before=limit), True)
    for what in ("predict", "predict sound", "features", "import", "export", "tokenizer", "text cache"):
        if c.wanted(f"disk full, {what}"):
            folder = c.fresh()
            mount(folder, "8k" if what == "tokenizer" else "40k")
            corpus = c.data / "text/train.txt"
            command, arguments, output = {
                "predict": ("cli", c.predict("image", folder / "o.npy"), "o.npy"),
                "predict sound": ("cli", c.predict("ctc", folder / "o.jsonl"), "o.jsonl"),
                "features": ("features", [*c.features(folder / "o.safetensors"), "--frames"], "o.safetensors"),
                "import": ("checkpoints", ["import", c.checkpoint("image"), "--out", folder / "o"], "o"),
                "export": ("checkpoints", ["export", c.checkpoint("image"), "--out", folder / "o"], "o"),
                "tokenizer": ("tokenizer", [corpus, "--out", folder / "o", "--vocab_size", 2000], "o"),
                "text cache": (
                    "cli",
                    c.fit("text", folder.with_name("tc"), "--data.cache_dir", folder / "o", steps=1),
                    "n",
                ),
            }[what]
            if what == "predict sound":
                (folder / "filler").write_bytes(bytes(32000))
            shutil.rmtree(folder.with_name("tc"), ignore_errors=True)
            child = c.run(command, arguments)
            c.say(child, child.code != 0 and not (folder / output).exists())
    if c.wanted("read-only file system"):
        folder = c.fresh()
        mount(folder, "1m", READ_ONLY)
        child = c.run("cli", c.fit("image", folder / "run"))
        c.say(child, child.code != 0)
    if c.wanted("read-only output at resume"):
        folder = c.fresh()
        shutil.copytree(c.checkpoint("image").parents[1], folder / "run")
        for path in [*(folder / "run").rglob("*"), folder / "run"]:
            path.chmod(0o444 if path.is_file() else 0o555)
        arguments = c.fit("image", folder / "run", "--ckpt_path", "last")
        child = c.run("cli", arguments, before=bound_by_permissions)
        c.say(child, child.code != 0)


# ---- things that vanish, and two at once -----------------------------------------------------------------------------


def vanishing(c: Campaign) -> None:
    for workers in (0, 2):
        if c.wanted(f"output deleted, {workers} workers"):
            folder = c.fresh()
            child = c.start(c.fit("image", folder / "run", workers=workers, steps=400))
            child.wait(60, until=lambda folder=folder: list(folder.glob("run/checkpoints/*.ckpt")))
            shutil.rmtree(folder / "run", ignore_errors=True)
            c.say(child.finish(90), True)
        for task in ("image", "audio", "ctc"):
            if c.wanted(f"data vanish, {task}, {workers} workers"):
                folder = c.fresh()
                shutil.copytree(c.data / ("pictures" if task == "image" else "spoken"), folder / "data")
                more = ["--data.root", folder / "data"]
                if task == "image":
                    more += ["--data.dataset", "null", "--data.num_channels", "1", "--data.batch_size", "4"]
                child = c.start(c.fit(task, folder / "run", *more, workers=workers, steps=2000))
                last = folder / "run/checkpoints/last.ckpt"
                child.wait(60, until=last.exists)
                shutil.rmtree(folder / "data")
                child.finish(120)
                c.say(child, child.code != 0 and whole(last), f"last.ckpt at step {step_of(last)}")
    if c.wanted("text and its cache vanish"):
        folder = c.fresh()
        shutil.copytree(c.data / "text", folder / "text")
        more = ["--data.files", folder / "text/train.txt", "--data.cache_dir", folder / "cache"]
        child = c.start(c.fit("text", folder / "run", *more, workers=2, steps=60))
        child.wait(60, until=lambda: list(folder.glob("run/checkpoints/*.ckpt")))
        shutil.rmtree(folder / "cache")
        shutil.rmtree(folder / "text")
        c.say(child.finish(), True)
    for more in ([], ["--ckpt_path", "last"]):
        if c.wanted(f"two at once in one folder {' '.join(more)}".strip()):
            folder = c.fresh()
            logs = [folder / f"{number}.log" for number in range(2)]
            children = [Child("cli", c.fit("image", folder / "run", *more, steps=60), c.work, log) for log in logs]
            codes = [child.finish().code for child in children]
            second = max(children, key=lambda child: child.code or 0)
            c.say(second, whole(folder / "run/checkpoints/last.ckpt") and 0 in codes and any(codes), f"exits {codes}")
    if c.wanted("two at once, predict of speech"):
        folder = c.fresh()
        arguments = c.predict("ctc", folder / "o.jsonl")
        children = [Child("cli", arguments, c.work, folder / f"{number}.log") for number in range(2)]
        codes = [child.finish().code for child in children]
        files = [json.loads(line)["file"] for line in (folder / "o.jsonl").read_text().splitlines()]
        second = max(children, key=lambda child: child.code or 0)
        c.say(second, len(files) == len(set(files)) == 17, f"exits {codes}, {len(files)} rows")


# ---- scarce things, clocks, pipes, signals ---------------------------------------------------------------------------


def scarcity(c: Campaign) -> None:
    for count in (24, 48, 80):
        if c.wanted(f"ulimit -n {count}"):
            limit = functools.partial(resource.setrlimit, resource.RLIMIT_NOFILE, (count, count))
            c.say(c.run("cli", c.fit("image", c.fresh() / "run", workers=2, steps=6), before=limit), True)
    for size in ("4k", "64k", "1m"):
        if c.wanted(f"shm {size}"):

            def little(size: str = size) -> None:
                own_mounts()
                mount("/dev/shm", size)

            c.say(c.run("cli", c.fit("image", c.fresh() / "run", workers=2, steps=6), before=little), True)
    for writable in (True, False):
        if c.wanted(f"wandb, {'' if writable else 'not '}writable"):
            folder = c.fresh()
            shutil.copy(ROOT / "configs/logging/wandb.yaml", folder / "wandb.yaml")
            (folder / "run").mkdir(mode=0o755 if writable else 0o500)
            base = c.fit("image", folder / "run", steps=3)
            arguments = [*base[:3], "--config", folder / "wandb.yaml", *base[3:]]
            child = c.run("cli", arguments, before=None if writable else bound_by_permissions)
            c.say(child, (child.code == 0) == writable)
    if c.wanted("clock going backwards, files from the future"):
        folder = c.fresh()

        def backwards() -> None:
            now, calls = time.time, iter(range(10**9))
            time.time = lambda: now() - 40 * next(calls)

        child = c.run("cli", c.fit("image", folder / "run", steps=12), before=backwards)
        c.say(child, child.code == 0)
        for path in (folder / "run").rglob("*"):
            os.utime(path, (2e9, 2e9))
        child = c.run("cli", c.fit("image", folder / "run", "--ckpt_path", "last", steps=14))
        c.say(child, step_of(folder / "run/checkpoints/last.ckpt") == 14)
    for bar in ("true", "false"):
        if c.wanted(f"stdout is a broken pipe, progress bar {bar}"):
            folder = c.fresh()

            def broken() -> None:
                reader, writer = os.pipe()
                os.dup2(writer, 1)
                os.close(reader)

            arguments = c.fit("image", folder / "run", "--trainer.enable_progress_bar", bar, steps=12)
            child = c.run("cli", arguments, before=broken)
            last = folder / "run/checkpoints/last.ckpt"
            c.say(child, child.code in (0, 128 + signal.SIGPIPE) and whole(last), f"step {step_of(last)}")
    for name in ("HUP", "TERM", "USR1", "INT"):
        for group in (False, True):
            if c.wanted(f"signal {'group ' if group else ''}{name}"):
                folder = c.fresh()
                child = c.start(c.fit("image", folder / "run", workers=2, steps=4000, every=3000))
                child.wait(60, until=(folder / "run/metrics/version_0/metrics.csv").exists)
                child.wait(1)
                number = getattr(signal, f"SIG{name}")
                child.kill(number, group)
                child.finish(60)
                c.say(child, whole(folder / "run/checkpoints/last.ckpt") and child.code == 128 + number)


# ---- odd places ------------------------------------------------------------------------------------------------------


def places(c: Campaign) -> None:
    def a_file(path: Path) -> None:
        path.write_text("x")

    def without_home() -> None:
        for name in ("HOME", "XDG_CACHE_HOME"):
            os.environ.pop(name, None)

    elsewhere = functools.partial(os.environ.update, TMPDIR="/nowhere/tmp")
    run_folder, checkpoints = "run", "run/checkpoints"
    cases: dict[str, tuple[str, Callable[[Path], Any] | None, Callable[[], Any] | None]] = {
        "the run's folder is a file": (run_folder, a_file, None),
        "checkpoints is a file": (checkpoints, a_file, None),
        "metrics is a file": ("run/metrics", a_file, None),
        "last.ckpt is a folder": (f"{checkpoints}/last.ckpt", Path.mkdir, None),
        "last.ckpt is a dangling link": (f"{checkpoints}/last.ckpt", lambda path: path.symlink_to("/nowhere/x"), None),
        "last.ckpt is a link": (
            f"{checkpoints}/last.ckpt",
            lambda path: path.symlink_to(shutil.copy(c.checkpoint("image"), path.parents[2] / "real.ckpt")),
            None,
        ),
        "TMPDIR is gone": (run_folder, None, elsewhere),
        "no HOME": (run_folder, None, without_home),
    }
    for name, (place, make, before) in cases.items():
        if c.wanted(name):
            folder = c.fresh()
            if make is not None:
                (folder / place).parent.mkdir(parents=True, exist_ok=True)
                make(folder / place)
            task, more = ("text", ["--data.cache_dir", "null"]) if name == "no HOME" else ("image", [])
            arguments = c.fit(task, folder / "run", "--ckpt_path", "last", *more, steps=5)
            c.say(c.run("cli", arguments, before=before), True)
    for what in ("config", "checkpoint", "text", "recordings"):
        if c.wanted(f"no right to read, {what}"):
            folder = c.fresh()
            base = c.fit("text" if what == "text" else "image", folder / "run", steps=1)
            source = {
                "config": base[2],
                "checkpoint": c.checkpoint("image"),
                "text": c.data / "text/train.txt",
                "recordings": c.data / "spoken",
            }[what]
            secret = folder / f"secret{Path(source).suffix}"
            (shutil.copytree if Path(source).is_dir() else shutil.copy)(source, secret)
            os.chmod(secret, 0)
            arguments = {
                "config": ["fit", "--config", secret, *base[3:]],
                "checkpoint": [*base, "--model.checkpoint", secret],
                "text": [*base, "--data.files", secret],
                "recordings": [*c.fit("audio", folder / "run", steps=1), "--data.root", secret],
            }[what]
            child = c.run("cli", arguments, before=bound_by_permissions)
            c.say(child, child.code not in (0, None) and Path(secret).name in child.error)


# ---- kills of the other commands -------------------------------------------------------------------------------------


def kills(c: Campaign, count: int) -> None:
    corpus = c.data / "text/train.txt"
    jobs: dict[str, tuple[str, Callable[[Path], list[Any]], list[str]]] = {
        "predict speech": ("cli", lambda folder: c.predict("ctc", folder / "o.jsonl"), ["o.jsonl"]),
        "predict pictures": ("cli", lambda folder: c.predict("image", folder / "o.npy"), ["o.npy", "o.csv"]),
        "features": ("features", lambda folder: c.features(folder / "o.npy"), ["o.npy", "o.csv"]),
        "import": ("checkpoints", lambda folder: ["import", c.checkpoint("image"), "--out", folder / "o"], ["o"]),
        "tokenizer": ("tokenizer", lambda folder: [corpus, "--out", folder / "o", "--vocab_size", 400], ["o"]),
    }
    draw = random.Random(5)
    for name, (command, arguments, outputs) in jobs.items():
        if c.wanted(f"kill {name}"):
            folder = c.fresh()
            (folder / "whole").mkdir()
            child = c.run(command, arguments(folder / "whole"))
            assert child.code == 0, child.text
            good, length, deaths = _content(folder / "whole", outputs), child.seconds, 0
            faults: set[str] = set()
            for number in range(count):
                out = folder / str(number)
                out.mkdir()
                for attempt in range(6):
                    child = Child(command, arguments(out), c.work, c.log)
                    child.wait(draw.uniform(0.05, 1.1) * length if attempt < 3 else 120)
                    if child.alive():
                        child.kill(signal.SIGKILL)
                    child.finish(20)
                    deaths += child.code == -signal.SIGKILL
                    if any((out / output).exists() for output in outputs) or child.code != -signal.SIGKILL:
                        break
                if _content(out, outputs) != good:
                    faults.add(f"differs after exit {child.code}: {child.error[:100]}")
                if left := sorted({path.name for path in out.iterdir()} - set(outputs)):
                    faults.add(f"left over: {left}")
            c.handled[c.case] = not faults
            print(
                f"{'LOOK' if faults else 'ok  '} {c.case}: {count} runs, {deaths} SIGKILLs {sorted(faults)}", flush=True
            )


def _content(folder: Path, outputs: list[str]) -> dict[str, bytes]:
    paths = [path for output in outputs for path in (folder / output, *(folder / output).rglob("*"))]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.is_file()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--kills", type=int, default=8, help="of predict, features, import and tokenizer each")
    parser.add_argument("--keep", help="folder to work in, which is kept")
    args = parser.parse_args()
    began = time.monotonic()
    own_mounts()
    warm()
    campaign = Campaign(Path(args.keep or tempfile.mkdtemp(prefix="chaos")), args.only)
    for group in (disks, vanishing, scarcity, places):
        group(campaign)
    kills(campaign, args.kills)
    bad = [name for name, fine in campaign.handled.items() if not fine]
    print(f"{len(campaign.handled)} faults, {len(bad)} not handled: {bad}; {time.monotonic() - began:.0f} s")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
