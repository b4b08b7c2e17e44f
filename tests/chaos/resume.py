"""Goes on from every checkpoint of a tiny run, and from checkpoints of runs that went on themselves: all must end alike.

    python -m tests.chaos.resume [--task image] [--chain 5,10] [--options "--trainer.max_steps -1 --trainer.max_epochs 4"]

Pre-training and CTC run by epochs and by steps, with and without accumulation, and with loaders made anew; the other tasks by
epochs, accumulated and made anew. Nothing here is random but the choice of chains.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.chaos.child import run, warm
from tests.chaos.world import compare, make_data, metrics, tasks

EPOCHS = "--trainer.max_steps -1 --trainer.max_epochs 3 --trainer.limit_train_batches {limit}"
STEPS = "--trainer.max_steps 10 --trainer.max_epochs -1 --trainer.limit_train_batches {limit}"
RELOAD = " --trainer.reload_dataloaders_every_n_epochs 2 --trainer.check_val_every_n_epoch 1 --trainer.val_check_interval 0.5"
FIVE = ("image", "image2", "audio", "ctc", "text")  # in every kind of run; the others in two


class Campaign:
    def __init__(self, work: Path) -> None:
        self.work, self.tried, self.wrong = work, 0, 0

    def go(self, name: str, arguments: list[str], checkpoint: Path | None = None) -> Path:
        out = self.work / name
        shutil.rmtree(out, ignore_errors=True)
        every = "--model_checkpoint.every_n_train_steps 1 --model_checkpoint.save_top_k -1 --model_checkpoint.filename {step}"
        more = [*every.split(), "--trainer.default_root_dir", str(out)]
        more += [] if checkpoint is None else ["--ckpt_path", str(checkpoint)]
        done = run("cli", [*arguments, *more], self.work, self.work / f"{name}.log", 200)
        assert done.code == 0, done.text[-1500:]
        return out

    def compare(self, whole: Path, chain: list[int], out: Path) -> None:
        found, rows = compare(whole, out), metrics(whole)
        found += [f"metric {key}" for key, values in metrics(out).items() if key in rows and not values <= rows[key]]
        self.tried += 1
        self.wrong += bool(found)
        if found:
            print(f"   resumed at {chain}: DIFFERENT {found[:4]}", flush=True)

    def resume_all(self, label: str, arguments: list[str], chains: int, draw: random.Random, fixed: list[int]) -> None:
        before = self.tried, self.wrong
        whole = self.go("whole", arguments)
        steps = _steps(whole)
        for step in () if fixed else steps[:-1]:
            self.compare(whole, [step], self.go("single", arguments, _checkpoint(whole, step)))
        for chain in [fixed] if fixed else _chains(steps[:-1], chains, draw):
            folder = whole
            for place, step in enumerate(chain):
                folder = self.go(f"chain{place}", arguments, _checkpoint(folder, step))
                if place:
                    self.compare(whole, chain[: place + 1], folder)
        tried, wrong = self.tried - before[0], self.wrong - before[1]
        print(f"{label}: {steps[-1]} steps, {tried} resumes, {tried - wrong} equal", flush=True)


def _steps(folder: Path) -> list[int]:
    return sorted(int(path.stem.partition("=")[2]) for path in (folder / "checkpoints").glob("step=*.ckpt"))


def _checkpoint(folder: Path, step: int) -> Path:
    return folder / f"checkpoints/step={step}.ckpt"


def _chains(steps: list[int], count: int, draw: random.Random) -> Iterator[list[int]]:
    """Three resumes one after the other, each later."""
    for _ in range(count if len(steps) > 2 else 0):
        yield sorted(draw.sample(steps, 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", help="one of those in world.py, such as glue; all of them without it")
    parser.add_argument("--options", help="more of fit's; without it all kinds of runs, one after the other")
    parser.add_argument("--chain", help="steps, such as 5,10: this chain only")
    parser.add_argument("--chains", type=int, default=3, help="of three resumes, for each run")
    parser.add_argument("--keep", help="folder to work in, which is kept")
    args = parser.parse_args()
    began = time.monotonic()
    warm()
    work = Path(args.keep or tempfile.mkdtemp(prefix="chaos"))
    bases = tasks(work / "tasks", make_data(work / "data"))
    campaign, draw = Campaign(work), random.Random(0)
    fixed = [int(step) for step in args.chain.split(",")] if args.chain else []
    for task in [args.task] if args.task else bases:
        big = " --data.batch_size 256" if task in ("image", "image2") else ""
        base = bases[task] if task == "image_text" else [*bases[task], "--data.num_workers", "0"]
        accumulated = " --trainer.accumulate_grad_batches 2"
        kinds = [EPOCHS.format(limit=1.0) + big, EPOCHS.format(limit=3), EPOCHS.format(limit=3) + accumulated]
        kinds += [STEPS.format(limit=4), STEPS.format(limit=4) + accumulated, EPOCHS.format(limit=3) + RELOAD]
        if task not in FIVE:
            kinds = [kinds[2], kinds[-1]]
        for options in [args.options] if args.options else kinds:
            if task == "text" and "1.0" in options:
                continue  # 60 steps
            campaign.resume_all(f"{task} {options}", [*base, *options.split()], args.chains, draw, fixed)
    print(
        f"{campaign.tried} resumes: {campaign.tried - campaign.wrong} equal bit for bit, {campaign.wrong} not; "
        f"{time.monotonic() - began:.0f} s"
    )
    sys.exit(bool(campaign.wrong))


if __name__ == "__main__":
    main()
