"""GLUE by the published protocol: every task under every learning rate and seed, the table, and the files to hand in.

    python benchmarks/glue.py --root /data/glue --checkpoint last.ckpt --out runs/glue

The score of a task is that of its best learning rate on the development set, over seeds: mean, median, lowest, highest
(papers report the mean or median of five). Each run leaves a file in OUT/results and is not repeated, so the command goes
on where it was stopped. Where a hidden test set lies beside the development set, the best run answers it in OUT/submission,
in the format of gluebenchmark.com. Settings are those of `configs/finetune/glue/`.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from d2v_lightning import GLUEClassifier, Progress
from d2v_lightning.finetune.glue_tasks import TASKS
from d2v_lightning.support.atomic import atomic_write
from datamodules import GLUEDataModule
from datamodules.text.glue_rows import SPLITS

NAMES = {"dev": "", "test_matched": "-m", "test_mismatched": "-mm", "test": ""}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of GLUE's own files")
    parser.add_argument("--checkpoint", required=True, help="see load_backbone")
    parser.add_argument("--tokenizer", help="of a checkpoint that holds none, such as Meta's: roberta-base")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--lr", nargs="+", type=float, default=[1e-5, 2e-5, 4e-5, 6e-5], help="1.0: 1, 2, 3, 4e-5")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--out", type=Path, default=Path("runs/glue"))
    args = parser.parse_args()
    missing = [task for task in args.tasks if not (args.root / TASKS[task].folder).is_dir()]
    if missing:
        raise SystemExit(
            f"error: {args.root} has no folder {TASKS[missing[0]].folder}: give --tasks, or GLUE's own files"
        )
    (args.out / "results").mkdir(parents=True, exist_ok=True)
    runs = [(task, lr, seed) for task in args.tasks for lr in args.lr for seed in range(args.seeds)]
    for number, (task, lr, seed) in enumerate(runs, start=1):
        file = args.out / "results" / f"{task}_{lr:g}_{seed}.json"
        if file.is_file():
            continue
        print(f"run {number} of {len(runs)}: {task}, learning rate {lr:g}, seed {seed}", flush=True)
        write(file, run(task, lr, seed, args))
    table(args)


def run(task: str, lr: float, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Scores on the development set of the last epoch, and answers to the hidden test sets."""
    pl.seed_everything(seed, verbose=False)
    model = GLUEClassifier.from_recipe(task, {"checkpoint": args.checkpoint, "optimization.lr": lr})
    data = GLUEDataModule.from_recipe(task, {"root": str(args.root), "tokenizer": args.tokenizer, "seed": seed})
    trainer = pl.Trainer(
        max_epochs=args.epochs,
        precision=args.precision,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        default_root_dir=tempfile.gettempdir(),
        callbacks=[Progress()],
    )
    trainer.fit(model, data)
    trainer.limit_val_batches = 1.0
    scores = {
        name.removeprefix("val/"): value
        for row in trainer.validate(model, data, verbose=False)
        for name, value in row.items()
    }
    return {"task": task, "lr": lr, "seed": seed, "scores": scores, "answers": answers(model, data)}


def answers(model: GLUEClassifier, data: GLUEDataModule) -> dict[str, list[Any]]:
    """What the model says about each hidden test set, by the name of its file."""
    found: dict[str, list[Any]] = {}
    assert data.root is not None
    folder = Path(data.root) / data.files.folder
    quiet: Any = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    for name in SPLITS["test"]:
        if not (folder / f"{name}.tsv").is_file():
            continue
        hidden = GLUEDataModule.from_recipe(
            model.task, {"root": data.root, "tokenizer": data.tokenizer, "predict_file": str(folder / f"{name}.tsv")}
        )
        said: list[Any] = []
        for outputs in pl.Trainer(**quiet, enable_progress_bar=False).predict(model, hidden) or []:
            if "values" in outputs:
                said += [round(min(5.0, max(0.0, value)), 3) for value in outputs["values"].tolist()]
            else:
                said += [data.class_names[best] for best in outputs["probabilities"].argmax(dim=-1).tolist()]
        found[name] = said
    return found


def table(args: argparse.Namespace) -> None:
    """Print and save the table, and write the files to hand in."""
    rows, means = [], []
    for task in args.tasks:
        results = [json.loads(path.read_text()) for path in sorted((args.out / "results").glob(f"{task}_*.json"))]
        rates = {result["lr"] for result in results}
        by_rate = {lr: [r for r in results if r["lr"] == lr] for lr in rates}
        best = max(by_rate, key=lambda lr: statistics.fmean(r["scores"]["score"] for r in by_rate[lr]))
        scores = [100 * r["scores"]["score"] for r in by_rate[best]]
        row = {"task": task, "lr": best, "mean": statistics.fmean(scores), "median": statistics.median(scores)}
        row |= {"lowest": min(scores), "highest": max(scores), "seeds": len(scores)}
        if task == "mnli":
            row["mismatched"] = 100 * statistics.fmean(r["scores"]["mismatched_accuracy"] for r in by_rate[best])
        rows.append(row)
        means.append(row["mean"])
        submit(task, max(by_rate[best], key=lambda r: r["scores"]["score"])["answers"], args.out / "submission")
    print(f"\n{'task':<6}{'rate':>8}{'mean':>8}{'median':>8}{'lowest':>8}{'highest':>8}{'seeds':>7}")
    for row in rows:
        cells = "".join(f"{row[name]:8.1f}" for name in ("mean", "median", "lowest", "highest"))
        other = f"   mismatched {row['mismatched']:.1f}" if "mismatched" in row else ""
        print(f"{row['task']:<6}{row['lr']:8g}{cells}{row['seeds']:7d}{other}")
    scored = [mean for row, mean in zip(rows, means, strict=True) if row["task"] != "wnli"]  # papers leave WNLI out
    average = statistics.fmean(scored or means)
    print(f"average (without WNLI) {average:.1f}")
    write(args.out / "table.json", {"tasks": rows, "average": average})


def submit(task: str, said: dict[str, list[Any]], folder: Path) -> None:
    for name, values in said.items():
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{TASKS[task].folder}{NAMES[name]}.tsv"
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="\t")
            writer.writerow(["index", "prediction"])
            writer.writerows(enumerate(values))


def write(path: Path, content: Any) -> None:
    """A JSON file that is there as a whole or not at all."""
    with atomic_write(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
