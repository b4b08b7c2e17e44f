"""Tiny image models, data for them, and a Trainer without files or bars, for tests that need any network or run."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from d2v_lightning import (
    Backbone,
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
)
from d2v_lightning.flavour import pl
from d2v_lightning.method.masking import block_mask
from datamodules.shared.loader import ResumableLoader
from datamodules.shared.samplers import EpochBatchSampler, derived_seed

GRID = (4, 4)


def tiny_backbone(image_size: int = 16, **transformer: Any) -> Backbone:
    """3 blocks, width 48; 4 x 4 patches of 4 pixels at the default size."""
    grid = (image_size // 4, image_size // 4)
    trunk = Transformer(
        **{
            "dim": 48,
            "depth": 3,
            "num_heads": 3,
            "layer_scale": 0.1,
            "position_bias": RelativePositionBias(grid, 3),
            **transformer,
        }
    )
    return Backbone(ImageEncoder(image_size=image_size, patch_size=4, dim=48), trunk)


def tiny_image_model(
    ema_teacher: EMATeacher | None = None,
    average_top_k_layers: int = 2,
    on_nonfinite: Literal["stop", "skip"] = "stop",
    **transformer: Any,
) -> Data2Vec:
    """A `Data2Vec` with the same weights at every call."""
    torch.manual_seed(0)
    return pretraining(
        tiny_backbone(**transformer),
        RegressionLoss(beta=2.0),
        ema_teacher or EMATeacher(decay_start=0.9, decay_end=0.99, anneal_steps=10),
        Optimization(lr=1e-3, schedule="constant", warmup=1),
        average_top_k_layers,
        on_nonfinite,
    )


def tiny_model(seed: int = 0, learned_positions: bool = True, dropout: float = 0.1, lr: float = 1e-3) -> Data2Vec:
    """Trains in milliseconds: two blocks of width 16 on 8x8 grey images of 4x4 patches. Leaves torch's random state seeded
    with `seed`."""
    pl.seed_everything(seed, verbose=False)
    bias = None if learned_positions else RelativePositionBias(GRID, num_heads=2)
    trunk = Transformer(
        dim=16, depth=2, num_heads=2, layer_scale=None, dropout=dropout, position_bias=bias, init="normal"
    )
    positions: Literal["none", "learned"] = "learned" if learned_positions else "none"
    encoder = ImageEncoder(image_size=8, patch_size=2, in_channels=1, dim=16, positions=positions)
    optimization = Optimization(lr=lr, warmup=2)
    return pretraining(Backbone(encoder, trunk), RegressionLoss(), EMATeacher(0.9, 0.9), optimization)


def pretraining(
    backbone: Backbone,
    loss: RegressionLoss,
    ema_teacher: EMATeacher,
    optimization: Optimization,
    average_top_k_layers: int = 2,
    on_nonfinite: Literal["stop", "skip"] = "stop",
) -> Data2Vec:
    return Data2Vec(
        student=MaskTokenStudent(backbone, LinearDecoder(backbone.transformer.dim)),
        targets=Targets(average_top_k_layers=average_top_k_layers),
        loss=loss,
        ema_teacher=ema_teacher,
        optimization=optimization,
        on_nonfinite=on_nonfinite,
    )


def image_batch(size: int, hidden: int, seed: int = 0) -> dict[str, Tensor]:
    """`size` random images with `hidden` of 16 patches hidden in each row."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(size, 1, 16, generator=generator)
    mask = scores.argsort(dim=-1).argsort(dim=-1) < hidden
    return {"inputs": torch.randn(size, 3, 16, 16, generator=generator), "mask": mask}


def image_batches(hidden: list[int], size: int = 2) -> list[dict[str, Tensor]]:
    """Batches of other images each, with these numbers of hidden patches."""
    return [image_batch(size, count, seed=number) for number, count in enumerate(hidden)]


def ready_loader(batches: list[dict[str, Tensor]]) -> Any:
    """A plain loader of batches that are made already."""
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def trained(batches: list[dict[str, Tensor]], accumulate: int, steps: int = 2, clip: float | None = 0.5) -> Data2Vec:
    """A `tiny_image_model` after so many optimiser steps."""
    model = tiny_image_model()
    trainer([], steps, accumulate_grad_batches=accumulate, gradient_clip_val=clip).fit(model, ready_loader(batches))
    return model


def blind(model: Data2Vec) -> Data2Vec:
    """Student and teacher that see nothing: patch embeddings zero for good."""
    assert model.teacher.encoder is not None
    for encoder in (model.backbone.encoder, model.teacher.encoder):
        torch.nn.init.zeros_(encoder.patch_embed.weight)
        encoder.patch_embed.requires_grad_(False)
    return model


class Blobs(Dataset[dict[str, Tensor]]):
    """Smooth random images (1, 8, 8), brighter in one half for class 1; everything follows from (epoch, index)."""

    def __init__(self, length: int = 64, bad: int | None = None) -> None:
        generator = torch.Generator().manual_seed(5)
        images = F.interpolate(torch.randn(length, 1, 4, 4, generator=generator), size=8, mode="bilinear")
        self.labels = torch.arange(length) % 2
        images[self.labels == 1, :, :, :4] += 3.0
        self.images = images
        if bad is not None:
            self.images[bad, 0, 0, 0] = float("nan")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Any) -> dict[str, Tensor]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        generator = torch.Generator().manual_seed(derived_seed("mask", epoch, index))
        mask = block_mask(GRID, 9, generator, min_block=2)[None]
        return {
            "inputs": self.images[index],
            "mask": mask,
            "labels": self.labels[index],
            "index": torch.tensor(index),
        }


def loader(length: int = 64, batch_size: int = 8, bad: int | None = None, num_workers: int = 0) -> ResumableLoader:
    """Training batches of `Blobs`, shuffled with seed 0, resumable."""
    sampler = EpochBatchSampler(length, batch_size, 0)
    return ResumableLoader(Blobs(length, bad), sampler, num_workers=num_workers, endless=True)


def probe_loaders() -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """(train, test) batches of labelled images."""
    data = Blobs(96)
    batches = [{"inputs": data.images[at : at + 16], "labels": data.labels[at : at + 16]} for at in range(0, 96, 16)]
    return batches[:4], batches[4:]


class Losses(pl.Callback):
    """Remembers the loss of every micro-batch, bit for bit."""

    def __init__(self) -> None:
        self.values: list[str] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.values.append(float(outputs["loss"]).hex())


def trainer(callbacks: list[pl.Callback], max_steps: int, folder: Any = None, **options: Any) -> pl.Trainer:
    """A quiet Trainer on the CPU."""
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": any(isinstance(callback, pl.callbacks.Checkpoint) for callback in callbacks),
        "enable_progress_bar": any(isinstance(callback, pl.callbacks.ProgressBar) for callback in callbacks),
        "enable_model_summary": False,
        "max_steps": max_steps,
        "default_root_dir": folder,
    }
    return pl.Trainer(callbacks=callbacks, **{**settings, **options})
