"""data2vec in a few minutes on two CPU cores: pre-train on real digits, fine-tune on few labels, and see what was learned.

    make quickstart            (or: python examples/quickstart.py --seeds 3 --steps 500 --out outputs/quickstart)
    VERSION=2 make quickstart  (data2vec 2.0, --version 2)

The data are the 1,797 handwritten digits (8x8 grey) that ship inside scikit-learn. Every figure is measured in this run:
the pre-trained network, the same network untrained, and raw pixels, under the same protocol, over several seeds.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader

from d2v_lightning import (
    Backbone,
    CollapseMonitor,
    Data2Vec,
    ImageClassifier,
    Optimization,
    Progress,
)
from d2v_lightning.method.probing import few_label_indices, knn_accuracy, linear_accuracy
from datamodules import ImageDataModule

LABELS_PER_CLASS = 5
FINETUNE_STEPS = 150
PROTOCOLS = ("k-NN", "linear probe", f"fine-tuned, {LABELS_PER_CLASS} labels a class")
NETWORKS = ("pre-trained", "untrained", "raw pixels")

Split = tuple[Tensor, Tensor]  # images (n, 1, 8, 8) and labels (n,)
Scores = dict[str, dict[str, float]]  # network -> protocol -> accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500, help="of pre-training")
    parser.add_argument("--version", type=int, choices=(1, 2), default=1, help="of data2vec")
    parser.add_argument("--out", type=Path, default=None, help="default: outputs/quickstart, or outputs/quickstart_v2")
    args = parser.parse_args()
    if min(args.seeds, args.steps) < 1:
        parser.error(f"--seeds is {args.seeds}, --steps {args.steps}: both must be 1 or more")
    recipe = versioned("digits", args.version)
    args.out = args.out or Path("outputs", versioned("quickstart", args.version))
    args.out.mkdir(parents=True, exist_ok=True)
    quieten()
    torch.set_num_threads(1)  # for matrices this small a second thread only waits; the other core loads data
    started, scores = time.time(), []
    for seed in range(args.seeds):
        print(f"seed {seed}: pre-training", flush=True)
        model, data = pretrain(recipe, seed, args.steps, args.out)
        scores.append(judge(recipe, model.backbone, data, seed))
        print(
            "  " + "   ".join(f"{network} {mean(row.values()):.3f}" for network, row in scores[-1].items()), flush=True
        )
    report(scores, args.out)
    draw(scores, model, data, args.out)
    print(
        f"\n{time.time() - started:.0f} s in all. Picture: {args.out}/quickstart.png, figures: {args.out}/scores.json"
    )


def versioned(name: str, version: int) -> str:
    """What `name` is called for a version of data2vec: "digits", "digits_v2"."""
    return name if version == 1 else f"{name}_v{version}"


def pretrain(recipe: str, seed: int, steps: int, out: Path) -> tuple[Data2Vec, ImageDataModule]:
    """data2vec by the recipe `configs/quickstart/digits.yaml`, or `digits_v2.yaml`."""
    pl.seed_everything(seed, verbose=False)
    model = Data2Vec.from_recipe(recipe)
    data = ImageDataModule.from_recipe(recipe, {"seed": seed})
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        gradient_clip_val=3.0,
        limit_val_batches=0,
        logger=CSVLogger(str(out), name="log", version=f"seed{seed}"),
        log_every_n_steps=min(10, steps),
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[monitor := CollapseMonitor(every_n_steps=min(100, steps)), Progress()],
    )
    trainer.fit(model, data)
    if monitor.verdict is not None:
        print(f"  the monitor says: {monitor.verdict.status} {monitor.verdict.cause}", flush=True)
    return model, data


def judge(recipe: str, backbone: Backbone, data: ImageDataModule, seed: int) -> Scores:
    """Accuracy on the test digits, from all training labels (k-NN, linear probe) and from a few (fine-tuning)."""
    train, test = tensors(data.probe_dataloaders()[0]), tensors(data.test_dataloader())
    torch.manual_seed(seed)
    networks: dict[str, Backbone | None] = {
        "pre-trained": backbone,
        "untrained": Data2Vec.from_recipe(recipe).backbone,
        "raw pixels": None,
    }
    few = few_label_indices(train[1], LABELS_PER_CLASS, seed)
    labelled = (train[0][few], train[1][few])
    scores: Scores = {}
    for name, network in networks.items():
        features = (embed(network, train), train[1], embed(network, test), test[1])
        scores[name] = {PROTOCOLS[0]: knn_accuracy(*features), PROTOCOLS[1]: linear_accuracy(*features)}
        if network is None:  # there is nothing to fine-tune: logistic regression on the pixels of the same digits
            scores[name][PROTOCOLS[2]] = linear_accuracy(features[0][few], labelled[1], *features[2:])
        else:
            scores[name][PROTOCOLS[2]] = finetune(network, data, labelled, test, seed)
    return scores


def embed(network: Backbone | None, split: Split) -> Tensor:
    """Mean of the last block's patches (n, D), or the pixels (n, 64)."""
    return split[0].flatten(1) if network is None else network.features(split[0], layers=[-1]).layers[0].mean(dim=1)


def finetune(backbone: Backbone, data: ImageDataModule, labelled: Split, test: Split, seed: int) -> float:
    """Test accuracy after training the whole network on the few labels."""
    pl.seed_everything(seed, verbose=False)
    classifier = ImageClassifier(
        num_classes=10,
        backbone=backbone,
        mean=data.seen_as["mean"],
        std=data.seen_as["std"],
        mixup=0.0,
        cutmix=0.0,
        label_smoothing=0.0,
        optimization=Optimization(lr=1e-3, layer_decay=0.75, warmup=0.1, final_lr=0.0),
    )
    rows = [{"inputs": image, "labels": label} for image, label in zip(*labelled, strict=True)]
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=FINETUNE_STEPS,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(classifier, DataLoader(rows, batch_size=50, shuffle=True))  # type: ignore[arg-type]
    with torch.no_grad():
        return float((classifier.eval()(test[0]).argmax(dim=1) == test[1]).float().mean())


def tensors(loader: Any) -> Split:
    """All images and labels of a loader."""
    batches = list(loader)
    return torch.cat([batch["inputs"] for batch in batches]), torch.cat([batch["labels"] for batch in batches])


def mean(values: Any) -> float:
    return statistics.fmean(values)


def report(scores: list[Scores], out: Path) -> None:
    """The table, on the screen and as JSON."""
    (out / "scores.json").write_text(json.dumps(scores, indent=1))
    print(f"\nTest accuracy on 250 digits, mean (lowest to highest) of {len(scores)} seeds")
    print(f"{'':<13}" + "".join(f"{protocol:<31}" for protocol in PROTOCOLS))
    for network in NETWORKS:
        cells = []
        for protocol in PROTOCOLS:
            values = [row[network][protocol] for row in scores]
            cells.append(f"{mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        print(f"{network:<13}" + "".join(f"{cell:<31}" for cell in cells))


def draw(scores: list[Scores], model: Data2Vec, data: ImageDataModule, out: Path) -> None:
    """Loss, monitored variances, masked inputs and accuracies as one picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(11, 7.5), constrained_layout=True)
    for seed in range(len(scores)):
        curves = read_log(out / "log" / f"seed{seed}" / "metrics.csv")
        axes[0, 0].plot(*curves["train/loss"], color=f"C{seed}", label=f"seed {seed}")
        for name, style in (("target_variance_batch", "-"), ("prediction_variance_batch", "--")):
            label = name.replace("_variance_batch", "s") if seed == 0 else None
            axes[0, 1].plot(*curves[f"collapse/{name}"], style, color=f"C{seed}", label=label)
    axes[0, 0].set(title="Training loss", xlabel="optimiser step", yscale="log")
    axes[0, 0].legend()
    axes[0, 1].set(title="Variance over the batch at a fixed position", xlabel="optimiser step", ylim=(0, None))
    axes[0, 1].legend()
    batch = next(iter(data.train_dataloader()))
    pictures = [picture_with_mask(batch, row, model.encoder.patch_size[0]) for row in range(6)]
    axes[1, 0].imshow(torch.cat([torch.cat(pair, dim=0) for pair in pictures], dim=1), cmap="gray")
    axes[1, 0].set(title="What the teacher sees (above) and the student (below)")
    axes[1, 0].axis("off")
    for place, network in enumerate(NETWORKS):
        values = [[row[network][protocol] for row in scores] for protocol in PROTOCOLS]
        x = [group + 0.27 * (place - 1) for group in range(3)]
        axes[1, 1].bar(x, [mean(group) for group in values], width=0.25, label=network)
        for at, group in zip(x, values, strict=True):
            axes[1, 1].plot([at] * len(group), group, "k.", markersize=4)
    axes[1, 1].set(title="Test accuracy (dots: seeds)", xticks=range(3), ylim=(0, 1.19))
    axes[1, 1].set_xticklabels([protocol.replace(", ", "\n") for protocol in PROTOCOLS])
    axes[1, 1].legend(loc="upper center", ncols=3, frameon=False)
    figure.savefig(out / "quickstart.png", dpi=110)


def picture_with_mask(batch: Any, row: int, patch: int) -> tuple[Tensor, Tensor]:
    """A digit (8, 8), scaled to 0..1, and the same with hidden patches grey."""
    digit = batch["inputs"][row, 0]
    digit = (digit - digit.min()) / (digit.max() - digit.min())
    side = digit.shape[0] // patch
    hidden = batch["mask"][row, 0].reshape(side, side).repeat_interleave(patch, 0).repeat_interleave(patch, 1)
    frame = torch.nn.functional.pad
    shown = (digit, torch.where(hidden, torch.tensor(0.45), digit))
    return frame(shown[0], (0, 1, 0, 1), value=1.0), frame(shown[1], (0, 1, 0, 1), value=1.0)


def read_log(path: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Steps and values of every metric in Lightning's CSV log."""
    curves: dict[str, tuple[list[float], list[float]]] = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name not in ("step", "epoch"):
                    steps, values = curves.setdefault(name, ([], []))
                    steps.append(float(row["step"]))
                    values.append(float(value))
    return curves


def quieten() -> None:
    """Leave our own lines on the screen, not Lightning's advice about loggers and workers."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for module in ("pytorch_lightning", "lightning_fabric"):
        warnings.filterwarnings("ignore", module=module)


if __name__ == "__main__":
    main()
