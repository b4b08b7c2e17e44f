"""What does pre-training buy on Fashion-MNIST? Fine-tuning against training from scratch, through the command line.

    python benchmarks/finetuning_curve.py --root images --seeds 0 1 2 --out outputs/finetuning_curve

A seed is four runs of `cli.py`: pre-training (configs/pretrain/fashion_mnist.yaml), fine-tuning from its last checkpoint
(configs/finetune/fashion_mnist.yaml), the same steps from random weights (fashion_mnist_scratch.yaml), and from random
weights with as many steps as pre-training and fine-tuning took together. `--root` holds train/<class>/* and
test/<class>/*. Top-1 on the whole test split at the end of each; on validation pictures on the way. One JSON line a run in
OUT/runs.jsonl; runs that are there are not repeated, and one that was cut off goes on. At the end it draws
OUT/finetuning_curve.png.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from draw_runs import curve

import d2v_lightning  # noqa: F401  # the short class names of the recipes
import datamodules  # noqa: F401
from d2v_lightning.commands.command_line import D2VCLI

RECIPES = Path(__file__).resolve().parent.parent / "configs"
PRETRAINING, FINETUNING, CHECK_EVERY = 1000, 300, 50
RUNS = {
    "pre-training": ("pretrain/fashion_mnist.yaml", PRETRAINING),
    "fine-tuned": ("finetune/fashion_mnist.yaml", FINETUNING),
    "from scratch": ("finetune/fashion_mnist_scratch.yaml", FINETUNING),
    "from scratch, all steps": ("finetune/fashion_mnist_scratch.yaml", PRETRAINING + FINETUNING),
}


def run(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One run of the command line, and its score on the test split."""
    recipe, steps = RUNS[name]
    folder, started = args.out / f"{name.replace(', ', '_').replace(' ', '_')}_{seed}", time.time()
    command = [
        *("fit", "--config", str(RECIPES / recipe), "--data.root", args.root, "--ckpt_path", "last"),
        *("--seed_everything", str(seed), "--data.seed", str(seed), "--trainer.default_root_dir", str(folder)),
        *("--trainer.max_steps", str(steps), "--trainer.precision", args.precision, "--trainer.accelerator", "cpu"),
        *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
    ]
    if name == "pre-training":
        command += ["--trainer.limit_val_batches", "0"]
    else:
        command += ["--trainer.val_check_interval", str(CHECK_EVERY)]
    if name == "fine-tuned":
        command += ["--model.checkpoint", str(args.out / f"pre-training_{seed}" / "checkpoints" / "last.ckpt")]
    D2VCLI(command)
    row: dict[str, Any] = {"run": name, "seed": seed, "steps": steps, "seconds": round(time.time() - started)}
    if name != "pre-training":
        last = str(folder / "checkpoints" / "last.ckpt")
        tested = D2VCLI(["test", "--ckpt_path", last, "--trainer.logger", "false", "--trainer.accelerator", "cpu"])
        row["top1"] = float(tested.trainer.callback_metrics["test/top1"])
        row["curve"] = curve(folder, "val/top1")
    return row


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Validation accuracy over labelled steps; dots: test accuracy at the end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), constrained_layout=True)
    for place, name in enumerate(list(RUNS)[1:]):
        for number, row in enumerate(row for row in rows if row["run"] == name):
            axes.plot(*zip(*row["curve"], strict=True), color=f"C{place}", label=name if number == 0 else None)
            axes.plot(row["steps"], row["top1"], "o", color=f"C{place}", markersize=4)
    axes.set(xlabel="optimiser steps on labelled pictures, 64 each", ylabel="top-1", ylim=(0, 1))
    axes.set_title("Fashion-MNIST: validation (lines) and test at the end (dots), a line a seed", fontsize=10)
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's choice")
    parser.add_argument("--out", type=Path, default=Path("outputs/finetuning_curve"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.threads:
        torch.set_num_threads(args.threads)
    log = args.out / "runs.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    for seed in args.seeds:
        for name in RUNS:
            if any((row["run"], row["seed"]) == (name, seed) for row in rows):
                continue
            rows.append(run(name, seed, args))
            print(json.dumps({key: value for key, value in rows[-1].items() if key != "curve"}), flush=True)
            with open(log, "a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    for name in list(RUNS)[1:]:
        scores = [row["top1"] for row in rows if row["run"] == name]
        spread = f"{min(scores):.3f} to {max(scores):.3f}"
        print(f"{name:24} top-1 {statistics.fmean(scores):.3f} ({spread}) over {len(scores)} seeds")
    draw(rows, args.out / "finetuning_curve.png")


if __name__ == "__main__":
    main()
