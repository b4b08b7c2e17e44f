"""Which settings learn from a few million tokens? Many short runs of text pre-training, probed on movie reviews.

    python benchmarks/text_curve.py --data text.npz --settings released slow bert --seeds 0 1 --out outputs/text_curve

Frozen features (last block, mean over tokens) under a linear probe on SST-2-format sentences, of student and teacher; then,
with `--finetune` and `--scratch`, `GLUEClassifier` from the pre-trained and from the untrained network. Meta's own settings
did not get beyond an untrained network at this scale. One JSON line a run in OUT/runs.jsonl; runs that are there are not
repeated.

`text.npz` holds `train` (uint16 ids, paragraphs end with `</s>` = 2), `vocab`, and `sst_{train,dev}_{ids,lens,y}`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from d2v_lightning import (
    Backbone,
    CollapseMonitor,
    ConvDecoder,
    Data2Vec,
    EMATeacher,
    GLUEClassifier,
    MaskTokenStudent,
    MlpDecoder,
    Optimization,
    RegressionLoss,
    Targets,
    TextEncoder,
    Transformer,
    VisibleStudent,
)
from d2v_lightning.method.probing import linear_accuracy, pooled_features
from datamodules import TextMaskCollator
from datamodules.text.vocabulary import Vocabulary

# What differs from "released": 1.0's recipe with the learning rate and EMA that Meta's code was measured with at this scale.
SLOW: dict[str, Any] = {"decay": (0.999, 0.9999)}
HALF: dict[str, Any] = {**SLOW, "prob": 0.5, "length": 1}
CENTRED: dict[str, Any] = {**HALF, "norm_each": ["position", "layer"]}
BLOCK: dict[str, Any] = {**CENTRED, "results": "block"}
LEAVE: dict[str, Any] = {**HALF, "leave": 0.1, "random": 0.1, "lr": 1e-3}
TWO: dict[str, Any] = {"prob": 0.48, "length": 1, "masks": 8, "beta": 0.0, "norm_after": ["layer"]}
SETTINGS: dict[str, dict[str, Any]] = {
    "released": {},
    "slow": SLOW,
    "half": HALF,
    "instance": {**HALF, "norm_each": ["instance"]},
    "batch": {**HALF, "norm_each": ["batch"]},
    "centred_released": {"norm_each": ["position", "layer"]},
    "half_high": {**HALF, "lr": 2e-3},
    "block_high": {**HALF, "results": "block", "lr": 2e-3},
    "frozen_block_high": {**BLOCK, "decay": (1.0, 1.0), "lr": 2e-3},
    "v2_centred_block_high": {**TWO, **SLOW, "norm_each": ["position", "layer"], "results": "block", "lr": 2e-3},
    "centred_fast_high": {**CENTRED, "decay": (0.99, 0.999), "lr": 2e-3},
    "centred_fast_block_high": {**BLOCK, "decay": (0.99, 0.999), "lr": 2e-3},
    "centred": CENTRED,
    "centred_low": {**CENTRED, "lr": 2e-4},
    "centred_high": {**CENTRED, "lr": 2e-3},
    "centred_top1": {**CENTRED, "top": 1},
    "centred_all": {**CENTRED, "top": 4},
    "centred_spans": {**CENTRED, "prob": 0.35, "length": 4},
    "centred_bert": {**CENTRED, "prob": 0.15},
    "block": {**HALF, "results": "block"},
    "centred_block": BLOCK,
    "centred_block_high": {**BLOCK, "lr": 2e-3},
    "centred_block_all": {**BLOCK, "top": 4},
    "centred_block_high_all": {**BLOCK, "top": 4, "lr": 2e-3},
    "centred_block_slower": {**BLOCK, "decay": (0.9999, 0.9999)},
    # A tenth of the chosen tokens stays, another becomes random: what the student makes of visible tokens then matters too.
    "block_leave": {**LEAVE, "results": "block"},
    "block_leave_high": {**LEAVE, "results": "block", "lr": 2e-3},
    "block_leave_all": {**LEAVE, "results": "block", "top": 3},
    "centred_block_leave": {**LEAVE, "results": "block", "norm_each": ["position", "layer"]},
    "bert_leave": {**LEAVE, "results": "block", "prob": 0.15},
    "frozen_block_leave": {**LEAVE, "results": "block", "decay": (1.0, 1.0)},
    "v2_centred_block_1e3": {**TWO, **SLOW, "norm_each": ["position", "layer"], "results": "block", "lr": 1e-3},
    "v2_frozen_block": {**TWO, "decay": (1.0, 1.0), "results": "block", "lr": 1e-3},
    "frozen": {**CENTRED, "decay": (1.0, 1.0)},
    "frozen_block": {**BLOCK, "decay": (1.0, 1.0)},
    "v2": {**TWO, "decay": (0.99, 0.9999)},
    "v2_slow": {**TWO, **SLOW},
    "v2_centred": {**TWO, **SLOW, "norm_each": ["position", "layer"]},
    "v2_centred_block": {**TWO, **SLOW, "norm_each": ["position", "layer"], "results": "block"},
}
BASE: dict[str, Any] = {
    **{
        "lr": 5e-4,
        "decay": (0.99, 0.999),
        "prob": 0.35,
        "length": 4,
        "top": 2,
        "norm_each": ["layer"],
        "norm_after": [],
    },
    **{"beta": 4.0, "results": "ffn", "masks": 1, "leave": 0.0, "random": 0.0},
}


class Text:
    """Blocks for pre-training, and reviews with labels: ids (n, T), padded with 1."""

    def __init__(self, path: str, length: int) -> None:
        file = np.load(path)
        ids = torch.from_numpy(file["train"].astype(np.int64))
        count = len(ids) // (length - 1)
        self.blocks = torch.cat(
            [torch.zeros(count, 1, dtype=torch.long), ids[: count * (length - 1)].view(count, -1)], 1
        )
        self.size = int(file["vocab"])
        special = torch.zeros(self.size, dtype=torch.bool)
        special[[0, 1, 2, 3, self.size - 1]] = True
        self.vocabulary = Vocabulary(0, 2, 1, self.size - 1, special, torch.ones(self.size, dtype=torch.bool))
        self.train, self.dev = (self._reviews(file, part, length) for part in ("train", "dev"))

    def _reviews(self, file: Any, part: str, length: int) -> tuple[Tensor, Tensor]:
        lengths, ids = file[f"sst_{part}_lens"].astype(int), file[f"sst_{part}_ids"].astype(np.int64)
        rows = torch.ones(len(lengths), min(length, int(lengths.max()) + 2), dtype=torch.long)
        for number, review in enumerate(np.split(ids, np.cumsum(lengths)[:-1])):
            kept = [0, *review[: rows.shape[1] - 2].tolist(), 2]
            rows[number, : len(kept)] = torch.tensor(kept)
        order = torch.from_numpy(np.argsort(lengths, kind="stable"))
        return rows[order], torch.from_numpy(file[f"sst_{part}_y"].astype(np.int64))[order]


def trimmed(rows: Tensor) -> Tensor:
    """Without the columns that are padding in every row."""
    return rows[:, : int((rows != 1).sum(dim=1).max())]


class Batches(IterableDataset[Any]):
    """Blocks in a new order each epoch, with masks; a pure function of (seed, step)."""

    def __init__(self, text: Text, collator: TextMaskCollator, args: argparse.Namespace, seed: int) -> None:
        self.text, self.collator, self.args, self.seed = text, collator, args, seed

    def __iter__(self) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(1_000_003 * (self.seed + 1))
        per_epoch = len(self.text.blocks) // self.args.batch
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for step in range(self.args.steps):
            epoch, place = divmod(step, per_epoch)
            if place == 0:
                order = torch.randperm(len(self.text.blocks), generator=generator)
            if step % workers != number:
                continue
            rows = order[place * self.args.batch : (place + 1) * self.args.batch].tolist()
            yield self.collator([{"inputs": self.text.blocks[row], "index": row, "key": (epoch, row)} for row in rows])


def network(setting: dict[str, Any], args: argparse.Namespace, vocab_size: int) -> Data2Vec:
    two = setting["masks"] > 1
    transformer = Transformer(
        dim=args.width,
        depth=args.depth,
        num_heads=4,
        norm="post",
        norm_eps=1e-5,
        final_norm=False,
        qkv_bias="qkv",
        layer_scale=None,
        dropout=args.dropout,
        attention_dropout=args.dropout,
        input_dropout=args.dropout,
        init="normal",
    )
    encoder = TextEncoder(args.width, vocab_size, args.length, pad_id=1, mask_id=vocab_size - 1)
    backbone = Backbone(encoder, transformer)
    student = (
        VisibleStudent(
            backbone, ConvDecoder(args.width, width=args.width, depth=3, kernel=5, residual=False, projection_depth=2)
        )
        if two
        else MaskTokenStudent(backbone, MlpDecoder(args.width, 2, "normal"))
    )
    anneal = max(1, int(0.3 * args.steps))
    return Data2Vec(
        student=student,
        targets=Targets(setting["top"], setting["results"], setting["norm_each"], setting["norm_after"]),
        loss=RegressionLoss(setting["beta"], "sum", "rsqrt_width"),
        ema_teacher=EMATeacher(*setting["decay"], anneal, 1),
        optimization=Optimization(
            lr=setting["lr"], betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01, decay_all=True, warmup=0.06, final_lr=0.0
        ),
        teacher_scope="transformer",
    )


@torch.no_grad()
def probe(model: Data2Vec, text: Text, part: Any) -> float:
    """Accuracy on the held-out reviews."""
    model.eval()
    features = [
        torch.cat([pooled(model, rows.to(model.device), part) for rows in map(trimmed, reviews.split(256))])
        for reviews in (text.train[0], text.dev[0])
    ]
    return linear_accuracy(features[0], text.train[1], features[1], text.dev[1])


def pooled(model: Data2Vec, rows: Tensor, part: Any) -> Tensor:
    return pooled_features(model, rows, rows == 1, part).cpu()


def review_batch(rows: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    inputs = trimmed(torch.stack([ids for ids, _ in rows]))
    return {"inputs": inputs, "padding_mask": inputs == 1, "labels": torch.stack([label for _, label in rows])}


def finetune(backbone: Backbone, text: Text, args: argparse.Namespace, seed: int) -> float:
    """Accuracy after three epochs on all reviews, the last one's (not the best)."""
    pl.seed_everything(seed, verbose=False)
    steps = 3 * len(text.train[0]) // 32
    optimization = Optimization(
        lr=args.finetune_lr, betas=(0.9, 0.98), eps=1e-6, decay_all=True, weight_decay=0.1, schedule="polynomial",
        warmup=0.06, final_lr=0.0,
    )  # fmt: skip
    model = GLUEClassifier("sst2", backbone=backbone, head_dropout=0.1, optimization=optimization)
    rows = list(zip(*text.train, strict=True))
    quiet: Any = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        max_steps=steps, gradient_clip_val=1.0, precision=args.precision, enable_model_summary=False, **quiet
    )
    trainer.fit(model, DataLoader(rows, batch_size=32, shuffle=True, collate_fn=review_batch))  # type: ignore[arg-type]
    model.eval().cpu()
    with torch.no_grad():
        found = torch.cat([model(x, x == 1).argmax(dim=-1) for x in map(trimmed, text.dev[0].split(256))])
    return float((found == text.dev[1]).float().mean())


def run(name: str, seed: int, text: Text, untrained: dict[int, float], args: argparse.Namespace) -> dict[str, Any]:
    setting = BASE | SETTINGS[name]
    setting["top"] = min(args.depth, setting["top"] * (2 if args.depth > 4 else 1))  # blocks averaged
    pl.seed_everything(seed, verbose=False)
    model, started = network(setting, args, text.size), time.time()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    if seed not in untrained:  # the same network in every setting
        untrained[seed] = probe(model, text, "student")
    row: dict[str, Any] = {"setting": name, "seed": seed, "untrained": untrained[seed]}
    if args.scratch:
        row["from_scratch"] = finetune(network(setting, args, text.size).backbone, text, args, seed)
    model.train()
    corruption = setting["leave"], setting["random"]
    collator = TextMaskCollator(
        text.vocabulary,
        setting["prob"],
        setting["length"],
        setting["masks"],
        *corruption,
        mask_special=False,
        seed=seed,
    )
    monitor = CollapseMonitor(every_n_steps=max(10, args.steps // 15))
    trainer = pl.Trainer(
        max_steps=args.steps,
        gradient_clip_val=5.0,
        precision=args.precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[monitor],
    )
    trainer.fit(model, DataLoader(Batches(text, collator, args, seed), batch_size=None, num_workers=args.workers))
    row["loss"] = float(trainer.callback_metrics["train/loss"])
    row["monitor"] = None if monitor.verdict is None else " ".join(monitor.verdict)
    kept = ("_input_share", "_rank", "_error")  # of the targets, and of each raw result of the teacher
    row |= {key: round(value, 4) for key, value in monitor.reading.items() if key.endswith(kept)}
    model.to(device)  # Lightning leaves it on the CPU
    row |= {part: probe(model, text, part) for part in ("student", "teacher")}
    if args.finetune:
        row["finetuned"] = finetune(model.backbone, text, args, seed)
    return {**row, "seconds": round(time.time() - started), **{key: str(value) for key, value in setting.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--settings", nargs="+", choices=sorted(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    for name, default in (
        ("steps", 4000),
        ("batch", 64),
        ("length", 128),
        ("width", 256),
        ("depth", 6),
        ("threads", 0),
        ("workers", 0),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--precision", default="32-true", choices=["32-true", "bf16-mixed"])
    parser.add_argument("--finetune", action="store_true", help="and fine-tune")
    parser.add_argument("--scratch", action="store_true", help="and train the untrained network as in fine-tuning")
    parser.add_argument("--finetune-lr", type=float, default=2e-4)
    parser.add_argument("--out", type=Path, default=Path("outputs/text_curve"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.threads:
        torch.set_num_threads(args.threads)
    text, log = Text(args.data, args.length), args.out / "runs.jsonl"
    untrained: dict[int, float] = {}
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    for seed in args.seeds:
        for name in args.settings:
            if any((row["setting"], row["seed"], row["steps"]) == (name, seed, args.steps) for row in done):
                continue
            sizes = {key: getattr(args, key) for key in ("steps", "batch", "width", "depth")} | {"block": args.length}
            row = {**run(name, seed, text, untrained, args), **sizes}
            print(json.dumps(row), flush=True)
            with open(log, "a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
