"""Does a run learn as fast as Meta's own code? Images 1.0 and 2.0 on 30,000 Fashion-MNIST pictures, 4,700 steps scheduled.

    python benchmarks/learning_curve.py --data image.npz --seed 0 --steps 1410 --out outputs/learning_curve
    python benchmarks/learning_curve.py --data image.npz --version 2 --probe-every 94 --out outputs/learning_curve_v2

`image.npz` holds `x_train`, `x_test` (uint8, 28x28) and `y_train`, `y_test`. The batches, augmentation and probes are
those under which the official code was measured: pictures padded to 32x32 and repeated to 3 channels, patch 4, batch 256,
random resized crop (area .6-1) and flip; features of the last block averaged over patches, 10,000 train and 5,000 test
pictures. It prints one JSON line at each probe and goes on from the last checkpoint when started again. `seconds` and
`cpu_seconds` are those of the training alone, without probes: on a machine that other work shares only the latter compares.
`--width`, `--depth`, `--batch` and `--scheduled` make it smaller; the reference's numbers hold for the defaults.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from d2v_lightning import (
    Backbone,
    ConvDecoder,
    Data2Vec,
    EMATeacher,
    ImageEncoder,
    LinearDecoder,
    MaskTokenStudent,
    Optimization,
    RegressionLoss,
    RelativePositionBias,
    Targets,
    Transformer,
    VisibleStudent,
)
from d2v_lightning.method.masking import block_mask, inverse_block_mask
from d2v_lightning.method.probing import few_label_indices, knn_accuracy, linear_accuracy

MEAN, STD = 0.2860, 0.3530
GRID = (8, 8)
PROBES = (0, 470, 1410, 2350, 3290, 4230)
CLIP = {1: 3.0, 2: 4.0}


def network_1(width: int, depth: int, scheduled: int) -> Data2Vec:
    """1.0: trunk 192 wide, 6 blocks, 3 heads; the settings of the reference run."""
    grid = GRID
    transformer = Transformer(
        dim=width,
        depth=depth,
        num_heads=width // 64,
        attention_dropout=0.05,
        drop_path=0.1,
        position_bias=RelativePositionBias(grid, num_heads=width // 64),
    )
    backbone = Backbone(ImageEncoder(image_size=32, patch_size=4, dim=width), transformer)
    return Data2Vec(
        student=MaskTokenStudent(backbone, LinearDecoder(width)),
        targets=Targets(average_top_k_layers=4),
        loss=RegressionLoss(beta=2.0),
        ema_teacher=EMATeacher(decay_start=0.99, decay_end=0.999, anneal_steps=round(0.3 * scheduled)),
        optimization=Optimization(lr=1e-3, warmup=round(0.1 * scheduled)),
    )


def network_2(width: int, depth: int, scheduled: int) -> Data2Vec:
    """2.0 with a trunk of the same size, one block of it prenet; the settings of the reference run."""
    transformer = Transformer(
        dim=width,
        depth=depth,
        num_heads=width // 64,
        norm="post",
        final_norm=False,
        input_norm=True,
        qkv_bias="qkv",
        layer_scale=None,
        init="normal",
        prenet_depth=1,
    )
    encoder = ImageEncoder(image_size=32, patch_size=4, dim=width, positions="sine_cosine", init="xavier")
    decoder = ConvDecoder(width, GRID, depth=3, kernel=3, width=width, groups=16)
    return Data2Vec(
        student=VisibleStudent(Backbone(encoder, transformer), decoder),
        targets=Targets(depth - 1, "ffn", ["instance"], ["layer"]),
        loss=RegressionLoss(beta=0.0, over_width="sum", scale="rsqrt_width"),
        ema_teacher=EMATeacher(decay_start=0.99, decay_end=0.9999, anneal_steps=round(0.3 * scheduled), first_update=1),
        optimization=Optimization(
            lr=1e-3, betas=(0.9, 0.95), schedule="fairseq_cosine", warmup=round(0.13 * scheduled), final_lr=0.0
        ),
        class_loss=0.01,
    )


def masks_1(batch: int, generator: torch.Generator) -> Tensor:
    """38 of 64 patches in blocks of at least 5, one mask a sample (B, 1, N)."""
    return torch.stack([block_mask(GRID, 38, generator, min_block=5) for _ in range(batch)])[:, None]


def masks_2(batch: int, generator: torch.Generator) -> Tensor:
    """All but 12 of 64 patches, which lie in squares of 3 x 3; eight masks a sample (B, 8, N)."""
    masks = [inverse_block_mask(GRID, 52, 3, generator) for _ in range(batch * 8)]
    return torch.stack(masks).unflatten(0, (batch, 8))


NETWORKS = {1: network_1, 2: network_2}
MASKS = {1: masks_1, 2: masks_2}


class Batches(IterableDataset[dict[str, Tensor]]):
    """The reference's batches, from batch `start` on; masks are a pure function of (seed, step)."""

    def __init__(self, images: Tensor, args: argparse.Namespace, start: int) -> None:
        self.images, self.args, self.start = images, args, start

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        seed, batch, make_masks = self.args.seed, self.args.batch, MASKS[self.args.version]
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        generator = torch.Generator().manual_seed(1000003 * (seed + 1))
        count = len(self.images)
        order, at = torch.randperm(count, generator=generator), 0
        for step in range(self.args.scheduled):
            if at + batch > count:
                order, at = torch.randperm(count, generator=generator), 0
            chosen, at = order[at : at + batch], at + batch
            uniform = torch.rand(5, batch, generator=generator)
            if step < self.start or (step - self.start) % workers != number:
                continue
            masks = torch.Generator().manual_seed(seed * 1_000_003 + step)
            yield {
                "inputs": crop_and_flip(self.images[chosen], uniform),
                "mask": make_masks(batch, masks),
                "index": chosen,
            }


def crop_and_flip(images: Tensor, uniform: Tensor) -> Tensor:
    """Random resized crop and flip of uint8 pictures (B, 32, 32) from uniform numbers (5, B) -> (B, 3, 32, 32)."""
    area = 0.6 + 0.4 * uniform[0]
    aspect = torch.exp(math.log(3 / 4) + uniform[1] * (math.log(4 / 3) - math.log(3 / 4)))
    width, height = (area * aspect).sqrt().clamp(max=1.0), (area / aspect).sqrt().clamp(max=1.0)
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0] = width * torch.where(uniform[4] < 0.5, -1.0, 1.0)
    theta[:, 0, 2], theta[:, 1, 2] = (1 - width) * (2 * uniform[2] - 1), (1 - height) * (2 * uniform[3] - 1)
    theta[:, 1, 1] = height
    pixels = images.float().div(255).unsqueeze(1)
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    cropped = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return ((cropped - MEAN) / STD).expand(-1, 3, -1, -1).contiguous()


class Probe(pl.Callback):
    """Prints k-NN / linear / 10-labels-a-class accuracy of teacher and student at the reference's steps."""

    def __init__(self, data: Any, out: Path, seed: int, every: int | None) -> None:
        pad = [F.pad(torch.from_numpy(data[name]), (2, 2, 2, 2)) for name in ("x_train", "x_test")]
        labels = [torch.from_numpy(data[name]).long() for name in ("y_train", "y_test")]
        chosen = torch.randperm(len(pad[0]), generator=torch.Generator().manual_seed(12345))[:10000]
        self.train, self.train_labels = pad[0][chosen], labels[0][chosen]
        self.test, self.test_labels = pad[1][:5000], labels[1][:5000]
        self.out, self.seed, self.every = out, seed, every
        self.trained = [0.0, 0.0]  # seconds and processor seconds of training
        self.since = [0.0, 0.0]

    def state_dict(self) -> dict[str, Any]:
        return {"trained": self.trained}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.trained = state_dict["trained"]

    def features(self, model: Data2Vec, images: Tensor, part: str) -> Tensor:
        chunks = []
        for chunk in images.split(500):
            inputs = ((chunk.float().div(255).unsqueeze(1) - MEAN) / STD).expand(-1, 3, -1, -1).to(model.device)
            if part == "student":
                tokens = model.backbone.features(inputs, layers=[-1]).layers[0]
            else:
                local, _ = model.encoder.features(inputs)
                tokens = model.teacher(
                    model.backbone, inputs, local, None, keep=[model.backbone.transformer.depth - 1]
                )[0].block[:, 1:]
            chunks.append(tokens.mean(dim=1).float().cpu())
        return torch.cat(chunks)

    @torch.no_grad()
    def probe(self, step: int, model: Data2Vec, loss: float | None) -> None:
        row: dict[str, Any] = {
            "step": step,
            "seed": self.seed,
            "loss": loss,
            "seconds": round(self.trained[0], 1),
            "cpu_seconds": round(self.trained[1], 1),
        }
        for part in ("teacher", "student"):
            train, test = self.features(model, self.train, part), self.features(model, self.test, part)
            few = []
            for draw in range(3):
                labelled = few_label_indices(self.train_labels, 10, 9000 + draw)
                few.append(linear_accuracy(train[labelled], self.train_labels[labelled], test, self.test_labels))
            row[part] = [
                round(accuracy, 4)
                for accuracy in (
                    knn_accuracy(train, self.train_labels, test, self.test_labels),
                    linear_accuracy(train, self.train_labels, test, self.test_labels),
                    sum(few) / 3,
                )
            ]
        print(json.dumps(row), flush=True)
        with open(self.out / f"seed{self.seed}.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 0:
            self.probe(0, pl_module, None)
        self.since = clocks()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        self.trained = [total + now - then for total, now, then in zip(self.trained, clocks(), self.since, strict=True)]
        if step in PROBES or (self.every is not None and step % self.every == 0):
            self.probe(step, pl_module, float(outputs["loss"]))
        self.since = clocks()


def clocks() -> list[float]:
    """Seconds, and processor seconds of this process, from some origin."""
    return [time.perf_counter(), time.process_time()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--version", type=int, choices=(1, 2), default=1, help="of data2vec")
    parser.add_argument(
        "--shifted-teacher",
        action="store_true",
        help="of 1.0: look up the teacher's relative positions one too low, as averaging integers does in Meta's code",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=470)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument(
        "--scheduled", type=int, default=4700, help="steps of the whole schedule, however few are taken"
    )
    parser.add_argument("--probe-every", type=int, help="steps; by default only where the reference has numbers")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's choice")
    parser.add_argument("--workers", type=int, default=0, help="processes that make batches; they are the same")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--out", type=Path, default=Path("outputs/learning_curve"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.threads:
        torch.set_num_threads(args.threads)
    pl.seed_everything(args.seed)
    data = np.load(args.data)
    images = F.pad(torch.from_numpy(data["x_train"]), (2, 2, 2, 2))
    last = args.out / f"seed{args.seed}" / "last.ckpt"
    start = torch.load(last, weights_only=True)["global_step"] if last.exists() else 0
    trainer = pl.Trainer(
        max_steps=args.steps,
        gradient_clip_val=CLIP[args.version],
        precision=args.precision,
        logger=False,
        enable_progress_bar=False,
        callbacks=[
            Probe(data, args.out, args.seed, args.probe_every),
            pl.callbacks.ModelCheckpoint(last.parent, save_last=True, save_top_k=0, every_n_train_steps=47),
        ],
    )
    model = NETWORKS[args.version](args.width, args.depth, args.scheduled)
    if args.shifted_teacher:
        model.teacher.transformer.position_bias.index.sub_(1).clamp_(min=0)  # type: ignore[union-attr, operator]
    model.configure_optimizers = lambda: model.optimization.configure(model, args.scheduled)  # type: ignore[method-assign]
    loader = DataLoader(Batches(images, args, start), batch_size=None, num_workers=args.workers)
    trainer.fit(model, loader, ckpt_path=last if last.exists() else None, weights_only=True)


if __name__ == "__main__":
    main()
