"""GLUE by the published protocol: tasks x learning rates x seeds, the best epoch of each run, one table.

    python -m d2v_lightning.commands.glue last.ckpt --protocol 2.0 --data.root /data/glue --output runs/glue

Two protocols are published, for the development sets. 1.0 tries the rates 1, 2, 3 and 4e-5 and takes the one that is
best over all tasks. 2.0 tries 1, 2, 4 and 6e-5 and takes the best of each task, which gives higher numbers. A run counts
with its best epoch. 1.0 keeps the epoch of the best accuracy, for STS-B of the lowest loss; 2.0 that of the best score.
1.0 reports the mean of five runs. 2.0's release does not say, so the mean of five is taken there too.

Runs are those of `cli.py fit` with configs/finetune/glue/TASK.yaml. --data.KEY, --model.KEY and --trainer.KEY go to all
of them: --data.dataset nyu-mll/glue in place of --data.root, --data.tokenizer roberta-base for Meta's files.

OUTPUT/results.json holds every run and the table. The same command goes on where it was stopped. More tasks, rates and
seeds may be asked for later.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import yaml

from d2v_lightning.commands.command_line import D2VCLI
from d2v_lightning.commands.ending import listen
from d2v_lightning.commands.glue_protocol import (
    PROTOCOLS,
    PUBLISHED,
    SEEDS,
    Protocol,
    Row,
    Run,
    as_json,
    as_text,
    table,
)
from d2v_lightning.commands.noise import leave_out_noise
from d2v_lightning.commands.running import run_command
from d2v_lightning.finetune.glue_tasks import TASKS
from d2v_lightning.flavour import rank_zero_info, rank_zero_only
from d2v_lightning.recipes import from_recipe, recipe_path
from d2v_lightning.support.atomic import atomic_write
from d2v_lightning.support.errors import NotFoundError, UsageError, UserError
from d2v_lightning.support.locks import only_one_in
from d2v_lightning.support.version import __version__
from datamodules.text.glue_rows import SPLITS, read_rows, split_files
from datamodules.text.vocabulary import agreed_tokenizer

RESULTS = "results.json"
SERVER_NAMES = {"test": "", "test_matched": "-m", "test_mismatched": "-mm"}
"""What gluebenchmark.com adds to the name of a task, by the name of the test set."""
_SECTIONS = ("--data.", "--model.", "--trainer.")
_OURS = {
    **dict.fromkeys(("--data.seed", "--trainer.default_root_dir"), "the command sets it for each run"),
    **dict.fromkeys(("--data.task", "--model.task"), "give --tasks"),
    "--model.checkpoint": "give the checkpoint without a name, as the first argument",
    "--model.optimization.lr": "give --rates",
}


class Grid:
    """All runs of one command, and the folder that holds what is known of them.

    Args:
        args: of the command line.
        options: (name, value) of what goes to `cli.py fit`.

    Raises:
        ValueError, FileNotFoundError: something that every run needs is wrong or missing. Nothing was trained.
    """

    def __init__(self, args: argparse.Namespace, options: Sequence[tuple[str, str]]) -> None:
        self.checkpoint, self.options, self.output = args.checkpoint, list(options), Path(args.output)
        self.submission, self.keeps = args.submission, args.keep_checkpoints
        self.protocol: Protocol = PROTOCOLS[args.protocol]
        self.tasks, self.seeds = list(dict.fromkeys(args.tasks)), sorted(set(args.seeds))
        self.rates = sorted(set(args.rates or self.protocol.rates))
        self._check()
        self.what = {
            "checkpoint": self.checkpoint,
            "sha256": _sha256(self.checkpoint),
            "protocol": args.protocol,
            "options": {name: value.rstrip("/") or value for name, value in self.options},
        }
        self.done = self._read_results()

    # ---- before anything is trained ----------------------------------------------------------------------------------

    def _section(self, prefix: str) -> dict[str, Any]:
        """Arguments of one section, as the values that they stand for."""
        found = {}
        for name, value in self.options:
            if name.startswith(prefix):
                try:
                    found[name.removeprefix(prefix)] = yaml.safe_load(value)
                except yaml.YAMLError as error:
                    raise UsageError(f"{name} {value}: the value is not valid YAML") from error
        return found

    def _check(self) -> None:
        if unknown := [task for task in self.tasks if task not in TASKS]:
            raise UsageError(f"--tasks {unknown[0]}: choose from {', '.join(TASKS)}")
        if bad := [rate for rate in self.rates if not 0 < rate < math.inf]:
            raise UsageError(f"--rates {bad[0]:g}: a learning rate must be a number above 0")
        if odd := [seed for seed in self.seeds if not 0 <= seed < 2**32]:
            raise UsageError(f"--seeds {odd[0]}: a seed must be a whole number from 0 to {2**32 - 1}")
        if ours := [name for name, _ in self.options if name in _OURS]:
            raise UsageError(f"{ours[0]}: {_OURS[ours[0]]}")
        given = self._section("--data.")
        if given.get("root") is None and given.get("dataset") is None:
            raise UsageError("no data: give --data.root FOLDER (GLUE's own files) or --data.dataset nyu-mll/glue")
        if self.submission and given.get("root") is None:
            raise UsageError("--submission answers the test files of --data.root, which is not given")
        for task in self.tasks:
            from_recipe(task, "data", given)
            for split in ("train", "val", *(["test"] if self.submission else [])):
                if given.get("root") is not None:
                    split_files(given["root"], TASKS[task], SPLITS[split])
        model = from_recipe(self.tasks[0], "model", {**self._section("--model."), "checkpoint": self.checkpoint})
        agreed_tokenizer(given.get("tokenizer"), model.backbone)

    def _read_results(self) -> dict[tuple[str, float, int], Run]:
        path = self.output / RESULTS
        if not path.exists():
            return {}
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            runs = [Run(run["task"], run["rate"], run["seed"], run["figures"]) for run in stored["runs"]]
            before, now = ({**what, **what["options"]} for what in (stored, self.what))
            names = ["checkpoint", "sha256", "protocol", *stored["options"], *self.what["options"]]
            differs = next((name for name in names if before.get(name) != now.get(name)), None)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged: choose another folder with --output, or remove it") from error
        if differs is not None:
            was, is_now = before.get(differs), now.get(differs)
            raise UsageError(
                f"{path} is of another {differs} ({was}, now {is_now}): choose another folder with --output"
            )
        return {(run.task, run.rate, run.seed): run for run in runs}

    # ---- the runs ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train and score what is missing, write the results, print the table."""
        wanted = [(task, rate, seed) for task in self.tasks for rate in self.rates for seed in self.seeds]
        missing = [key for key in wanted if not self._is_done(*key)]
        self._say_what(len(wanted), len(wanted) - len(missing))
        number = 0
        try:
            for number, key in enumerate(missing, start=1):
                rank_zero_info(f"run {number} of {len(missing)}: {key[0]}, learning rate {key[1]:g}, seed {key[2]}")
                self.done[key] = self._one(*key)
                self._write_results(None)
                if not self.keeps and _is_first():
                    shutil.rmtree(self._folder(*key) / "checkpoints")
        except (SystemExit, KeyboardInterrupt):
            rank_zero_info(f"stopped in run {number} of {len(missing)}: the same command goes on from here")
            raise
        rows = table([self.done[key] for key in wanted], self.protocol.one_rate)
        self._write_results(rows)
        if _is_first():
            print(as_text(rows))
            if self.submission:
                self._submit(rows)

    def _folder(self, task: str, rate: float, seed: int) -> Path:
        return self.output / task / f"{rate:g}" / str(seed)

    def _is_done(self, task: str, rate: float, seed: int) -> bool:
        answered = not self.submission or all(path.exists() for _, path in self._answers(task, rate, seed))
        return (task, rate, seed) in self.done and answered

    def _answers(self, task: str, rate: float, seed: int) -> list[tuple[Path, Path]]:
        """(test file, what the run says about it)."""
        files = split_files(self._section("--data.")["root"], TASKS[task], SPLITS["test"])
        return [(path, self._folder(task, rate, seed) / f"{path.stem}.csv") for path in files]

    def _say_what(self, runs: int, done: int) -> None:
        chosen = "one rate for all tasks" if self.protocol.one_rate else "the best rate of each task"
        rank_zero_info(
            f"GLUE by the protocol of {self.what['protocol']}, d2v_lightning {__version__}: {self.checkpoint}, "
            f"{len(self.tasks)} task(s) x {len(self.rates)} rate(s) x {len(self.seeds)} seed(s), {chosen}, mean over seeds "
            f"of the best epoch on the development set; {done} of {runs} run(s) are done"
        )

    def _one(self, task: str, rate: float, seed: int) -> Run:
        """Fine-tune, or go on with that, and score the epoch that was kept."""
        folder, monitor = self._folder(task, rate, seed), self.protocol.monitor(task)
        given = {
            "--seed_everything": seed,
            "--data.seed": seed,
            "--model.checkpoint": self.checkpoint,
            "--model.optimization.lr": rate,
            "--model_checkpoint.monitor": monitor.name,
            "--model_checkpoint.mode": monitor.mode,
            "--trainer.default_root_dir": folder,
            "--trainer.enable_model_summary": "false",  # the same table in every run
            "--ckpt_path": "last",
        }
        cli = _command("fit", "--config", str(recipe_path(task)), *_flat(given.items()), *_flat(self.options))
        best = folder / "checkpoints" / "best.ckpt"
        if not best.exists():
            raise NotFoundError(f"{folder}: no epoch was scored, so none was kept: train for at least one whole epoch")
        listen()
        scored = cli.trainer.validate(
            cli.model, datamodule=cli.datamodule, ckpt_path=str(best), verbose=False, weights_only=True
        )
        found = {name.removeprefix("val/"): value for row in scored for name, value in row.items()}
        if self.submission:
            self._answer(task, rate, seed, best)
        run = Run(task, rate, seed, found)
        rank_zero_info(f"{task}, learning rate {rate:g}, seed {seed}: score {100 * run.score:.1f}")
        return run

    def _answer(self, task: str, rate: float, seed: int, best: Path) -> None:
        trainer = [(name, value) for name, value in self.options if name.startswith("--trainer.")]
        recipe = yaml.safe_load(recipe_path(task).read_text())["trainer"]
        for path, answers in self._answers(task, rate, seed):
            given = {
                "--ckpt_path": best,
                "--data.predict_file": path,
                "--predictions.output": answers,
                "--predictions.overwrite": "true",
                "--trainer.default_root_dir": answers.parent,
                "--trainer.precision": recipe["precision"],
            }
            _command("predict", *_flat(given.items()), *_flat(trainer))
            test = read_rows(path, None)
            rows, said = len(test.rows) + len(test.bad), len(_predictions(answers))
            if said != rows:
                raise UserError(f"{path} has {rows} rows, {said} have an answer: no row of a test set may be missing")

    # ---- what comes of them ------------------------------------------------------------------------------------------

    def _write_results(self, rows: Sequence[Row] | None) -> None:
        if not _is_first():
            return
        asked = {"tasks": self.tasks, "rates": self.rates, "seeds": self.seeds}
        chosen = "all" if self.protocol.one_rate else "task"
        content = {
            **self.what,
            "d2v_lightning": __version__,
            "rate_is_best_of": chosen,
            "table": None if rows is None else {**asked, **as_json(rows)},
            "runs": [{**run._asdict(), "score": run.score} for run in self.done.values()],
        }
        with atomic_write(self.output / RESULTS) as unfinished:
            unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def _submit(self, rows: Sequence[Row]) -> None:
        """Write the answers of the best seed of each task, as gluebenchmark.com takes them."""
        folder = self.output / "submission"
        for row in rows:
            for path, answers in self._answers(row.task, row.rate, row.best_seed):
                name = f"{TASKS[row.task].folder}{SERVER_NAMES[path.stem]}.tsv"
                lines = ["index\tprediction", *(f"{n}\t{said}" for n, said in enumerate(_predictions(answers)))]
                with atomic_write(folder / name) as unfinished:
                    unfinished.write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"answers to the test sets: {folder}")


def _predictions(path: Path) -> list[str]:
    """What a file of `predict` says, row by row; numbers within the 0 to 5 of STS-B."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row["label"] if "label" in row else f"{min(5.0, max(0.0, float(row['value']))):.3f}" for row in rows]


def _command(*args: str) -> D2VCLI:
    """Run a command of cli.py, which Ctrl-C stops however many have ended before."""
    listen()
    return D2VCLI(args)


def _is_first() -> bool:
    """Whether this is the one process that writes; Lightning starts the others with the same command line."""
    return bool(getattr(rank_zero_only, "rank", 0) == 0)


def _flat(options: Any) -> list[str]:
    return [str(part) for option in options for part in option]


def _sha256(checkpoint: str) -> str | None:
    """Of a file, or of all files of a directory; None of a name on the hub."""
    path = Path(checkpoint)
    if path.is_file():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if not path.is_dir():
        return None
    files = sorted(inner for inner in path.rglob("*") if inner.is_file())
    lines = [f"{_sha256(str(inner))}  {inner.relative_to(path)}\n" for inner in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m d2v_lightning.commands.glue",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", help="file, directory or name on the model hub, of a text model")
    parser.add_argument("--protocol", required=True, choices=list(PROTOCOLS), help="of which release, see above")
    parser.add_argument("--tasks", nargs="+", default=PUBLISHED, metavar="TASK", help="default: the published eight")
    parser.add_argument(
        "--rates", nargs="+", type=float, metavar="RATE", help="learning rates; default: the protocol's"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, metavar="SEED", help="default: 0 1 2 3 4")
    parser.add_argument("--output", default="runs/glue", metavar="FOLDER", help="default: %(default)s")
    parser.add_argument("--submission", action="store_true", help="also answer the test sets, for gluebenchmark.com")
    parser.add_argument("--keep_checkpoints", action="store_true", help="keep those of finished runs")
    parser.usage = "%(prog)s checkpoint --protocol 1.0|2.0 --data.root FOLDER [options] [--SECTION.KEY VALUE ...]"
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; a mistake ends with one line and exit status 2, a refusal with 1."""
    parser = _parser()
    known, rest = parser.parse_known_args(arguments)
    parts = [part for item in rest for part in (item.split("=", 1) if item.startswith(_SECTIONS) else [item])]
    options = list(zip(parts[::2], parts[1::2], strict=False))
    unknown = [name for name in parts[::2] if not name.startswith(_SECTIONS)]
    if len(parts) % 2 or unknown:
        wrong = f"unknown: {unknown[0]}" if unknown else f"{parts[-1]} has no value"
        parser.error(
            f"{wrong}. Settings of the runs are given as --data.KEY VALUE, --model.KEY VALUE, --trainer.KEY VALUE"
        )
    leave_out_noise()
    status = run_command(lambda: _run(known, options))
    if status:
        raise SystemExit(status)


def _run(known: argparse.Namespace, options: Sequence[tuple[str, str]]) -> None:
    with only_one_in(known.output) if _is_first() else nullcontext():
        Grid(known, options).run()


if __name__ == "__main__":
    main()
