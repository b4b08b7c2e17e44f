"""Text in a few minutes on two CPU cores: train a tokenizer, pre-train on the English inside Python, see what was learned.

    make quickstart-text            (or: python examples/quickstart_text.py --out outputs/quickstart_text)
    VERSION=2 make quickstart-text  (data2vec 2.0, --version 2)

The data are help topics and docstrings of the standard library (see `python_text.py`). What was learned is probed with
frozen features: from which of ten packages does a docstring come? The pre-trained network, the same network untrained, and
a count of tokens, under the same linear probe, several seeds. Whatever it shows is what is printed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from python_text import PACKAGES, write_text
from pytorch_lightning.loggers import CSVLogger
from quickstart import mean, quieten, read_log, versioned
from torch import Tensor

from d2v_lightning import Backbone, CollapseMonitor, Data2Vec, Progress
from d2v_lightning.commands.tokenizer import main as train_tokenizer
from d2v_lightning.method.probing import linear_accuracy
from d2v_lightning.support.lines import read_lines
from datamodules import TextDataModule, load_tokenizer
from datamodules.text.collators import TextCollator

NETWORKS = ("pre-trained", "untrained", "count of tokens")
LENGTH, VOCABULARY = 64, 4000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--version", type=int, choices=(1, 2), default=1, help="of data2vec")
    parser.add_argument("--out", type=Path, default=None, help="default: outputs/quickstart_text, ..._v2 for 2.0")
    args = parser.parse_args()
    recipe = versioned("text", args.version)
    args.out = args.out or Path("outputs", versioned("quickstart_text", args.version))
    quieten()
    torch.set_num_threads(1)  # the other core loads data
    started, rows = time.time(), []
    data = args.out / "data"
    print(f"paragraphs of English from Python itself: {write_text(data)}", flush=True)
    shutil.rmtree(data / "bpe", ignore_errors=True)  # of an earlier run
    if train_tokenizer([str(data / "train.txt"), "--out", str(data / "bpe"), "--vocab_size", str(VOCABULARY)]) != 0:
        raise SystemExit("the tokenizer was not trained")
    probe = labelled(data)
    for seed in range(args.seeds):
        print(f"seed {seed}: pre-training", flush=True)
        backbone = pretrain(recipe, seed, args)
        rows.append(judge(recipe, backbone, probe))
        print("  " + "   ".join(f"{name} {rows[-1][name]:.3f}" for name in NETWORKS), flush=True)
    (args.out / "scores.json").write_text(json.dumps(rows, indent=1))
    print(
        f"\nPackage of a docstring, linear probe, mean (lowest to highest) of {len(rows)} seeds; {len(PACKAGES)} packages"
    )
    for name in NETWORKS:
        values = [row[name] for row in rows]
        print(f"{name:<16} {mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
    draw(rows, args.out)
    print(
        f"\n{time.time() - started:.0f} s in all. Picture: {args.out}/quickstart.png, figures: {args.out}/scores.json"
    )


def pretrain(recipe: str, seed: int, args: argparse.Namespace) -> Backbone:
    """data2vec by the recipe `configs/quickstart/text.yaml`, or `text_v2.yaml`."""
    pl.seed_everything(seed, verbose=False)
    data = args.out / "data"
    model = Data2Vec.from_recipe(recipe)
    paths = {"files": str(data / "train.txt"), "tokenizer": str(data / "bpe"), "cache_dir": str(data / "cache")}
    monitor = CollapseMonitor(every_n_steps=50)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=args.steps,
        gradient_clip_val=5.0,
        limit_val_batches=0,
        logger=CSVLogger(str(args.out), name="log", version=f"seed{seed}"),
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[monitor, Progress()],
    )
    trainer.fit(model, TextDataModule.from_recipe(recipe, {**paths, "seed": seed}))
    if monitor.verdict is not None:
        print(f"  the monitor says: {monitor.verdict.status} {monitor.verdict.cause}", flush=True)
    return model.backbone


def labelled(data: Path) -> tuple[list[Any], Tensor, list[Any], Tensor]:
    """Token ids and packages of docstrings: four fifths to train the probe, one to test it."""
    tokenizer = load_tokenizer(str(data / "bpe"))
    rows = [json.loads(line) for line in read_lines(data / "packages.jsonl")]
    ids = tokenizer([row["text"] for row in rows], truncation=True, max_length=LENGTH)["input_ids"]
    labels = torch.tensor([PACKAGES.index(row["package"]) for row in rows])
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    test, train = order[: len(order) // 5], order[len(order) // 5 :]
    return [ids[i] for i in train], labels[train], [ids[i] for i in test], labels[test]


def judge(recipe: str, backbone: Backbone, probe: tuple[list[Any], Tensor, list[Any], Tensor]) -> dict[str, float]:
    """Accuracy of a linear probe on features of every kind."""
    train, train_labels, test, test_labels = probe
    scores = {}
    for name, network in (("pre-trained", backbone), ("untrained", Data2Vec.from_recipe(recipe).backbone)):
        features = [
            torch.cat([pooled(network, ids[at : at + 64]) for at in range(0, len(ids), 64)]) for ids in (train, test)
        ]
        scores[name] = linear_accuracy(features[0], train_labels, features[1], test_labels)
    counts = [
        torch.stack([torch.tensor(row).bincount(minlength=VOCABULARY).float() for row in ids]) for ids in (train, test)
    ]
    scores["count of tokens"] = linear_accuracy(counts[0], train_labels, counts[1], test_labels)
    return scores


def pooled(network: Backbone, ids: list[Any]) -> Tensor:
    """Mean of the last block's tokens (B, D), padding left out."""
    batch = TextCollator()(ids)
    features = network.features(batch["inputs"], batch.get("padding_mask"), layers=[-1])
    tokens = features.layers[0]
    if features.padding_mask is not None:
        tokens = tokens.masked_fill(features.padding_mask[..., None], 0.0)
    return tokens.sum(dim=1) / features.lengths[:, None]


def draw(rows: list[dict[str, float]], out: Path) -> None:
    """Loss, what the monitor saw and accuracies, as one picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4), constrained_layout=True)
    for seed in range(len(rows)):
        curves = read_log(out / "log" / f"seed{seed}" / "metrics.csv")
        axes[0].plot(*curves["train/loss"], color=f"C{seed}", label=f"seed {seed}")
        for name, style in (("target_input_share", "-"), ("prediction_error", "--")):
            label = name.replace("_", " ") if seed == 0 else None
            axes[1].plot(*curves.get(f"collapse/{name}", ([], [])), style, color=f"C{seed}", label=label)
    axes[0].set(title="Training loss", xlabel="optimiser step")
    axes[0].legend()
    axes[1].set(title="Monitor", xlabel="optimiser step", ylim=(0, 1.1))
    axes[1].legend()
    axes[2].bar(NETWORKS, [mean(row[name] for row in rows) for name in NETWORKS], color=["C0", "C1", "C2"])
    for place, name in enumerate(NETWORKS):
        axes[2].plot([place] * len(rows), [row[name] for row in rows], "k.")
    axes[2].set(title="Package of a docstring, frozen features", ylim=(0, 1))
    figure.savefig(out / "quickstart.png", dpi=110)


if __name__ == "__main__":
    main()
