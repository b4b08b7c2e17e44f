"""PictureLogger: what the student is shown, what teacher and student make of it, and where the prediction is wrong."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from d2v_lightning.callbacks.objective_of import objective_of
from d2v_lightning.callbacks.without_side_effects import without_side_effects
from d2v_lightning.configurable import Configurable
from d2v_lightning.flavour import pl
from d2v_lightning.nn.normalization import Normalization
from d2v_lightning.support.errors import UserError

COLUMNS = ("input", "student sees", "teacher features", "student features", "prediction error")
HIDDEN_GREY = 0.5


class PictureLogger(Configurable, pl.Callback):
    """Writes `pictures/step_000100.png` beside the logs (or below `default_root_dir`), and to TensorBoard and wandb.

    One row for each of a few pictures, always those of the first batch of the run, with their masks: the input, the input
    with hidden patches grey, the patch features of teacher and student (last block, three principal components of all
    shown patches as red, green and blue), and the squared error of the prediction at hidden patches, as part of the
    targets' variance (0 dark, 1 and more bright; grey was not predicted). With several masks a sample, the first is shown.

    Args:
        every_n_steps: optimiser steps between pictures.
        num_pictures: rows.
        modality: in a run of several, the one with the pictures, drawn at its first batch after every so many steps.

    Raises:
        ValueError: an argument is not positive.
    """

    def __init__(self, every_n_steps: int = 1000, num_pictures: int = 6, modality: str | None = None) -> None:
        if every_n_steps < 1 or num_pictures < 1:
            raise UserError(f"every_n_steps is {every_n_steps}, num_pictures is {num_pictures}: both must be 1 or more")
        self.every_n_steps, self.num_pictures, self.modality = every_n_steps, num_pictures, modality
        self._shown: dict[str, Tensor] | None = None
        self._folder = ""
        self._last_step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last_step, self._shown = trainer.global_step, None
        objective_of(pl_module, self.modality, "PictureLogger")
        self._folder = os.path.join(trainer.log_dir or trainer.default_root_dir, "pictures")  # asks all ranks

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._shown is not None or (self.modality is not None and batch["modality"] != self.modality):
            return
        if not isinstance(batch, dict) or "mask" not in batch or batch["inputs"].dim() != 4:
            raise UserError(
                "PictureLogger shows batches of images (B, C, H, W) with masks only: take it out of this run"
            )
        self._shown = {name: batch[name][: self.num_pictures].clone() for name in ("inputs", "mask")}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if self._shown is None or step // self.every_n_steps == self._last_step // self.every_n_steps:
            return
        self._last_step = step
        if not trainer.is_global_zero:
            return
        with without_side_effects(trainer, pl_module):
            shown = panels(objective_of(pl_module, self.modality, "PictureLogger"), self._shown)
        path = os.path.join(self._folder, f"step_{step:06d}.png")
        image = draw(shown, f"optimiser step {step:,}")
        os.makedirs(self._folder, exist_ok=True)
        from PIL import Image

        Image.fromarray(image).save(path)
        _send(trainer, image, path, step)


def panels(objective: Any, batch: dict[str, Tensor]) -> list[Tensor]:
    """The five columns, each (B, rows, columns, 3) float in 0..1, for images (B, C, H, W) and masks (B, M, N)."""
    inputs, mask = batch["inputs"], batch["mask"]
    grid = tuple(objective.encoder.grid)
    pictures = to_rgb(inputs, getattr(objective.encoder, "normalization", None))
    hidden = mask[:, 0].reshape(-1, 1, *grid).float()
    hidden = F.interpolate(hidden, size=pictures.shape[1:3])[:, 0, :, :, None].cpu()
    backbone = objective.backbone
    last, extra = [backbone.transformer.depth - 1], backbone.num_extra_tokens
    tokens, _ = backbone.encoder.features(inputs, None)
    teacher = objective.teacher(backbone, inputs, tokens, None, keep=last)[0].block[:, extra:]
    student = backbone.contextualize(tokens, None, keep=last)[1][0].block[:, extra:]

    targets = objective.targets(batch).float()
    length = targets.shape[1]
    predictions, places = objective.predictions(batch)
    masks = mask.shape[1]
    first = (places // length) % masks == 0
    predictions, places = predictions[first].float(), places[first]
    flat = places // (masks * length) * length + places % length
    error = torch.full((targets.shape[0] * length,), float("nan"), device=targets.device)
    spread = (targets - targets.mean(dim=(0, 1))).square().mean().clamp_min(1e-12)
    error[flat] = (predictions - targets.flatten(0, 1)[flat]).square().mean(dim=1) / spread
    return [
        pictures,
        pictures * (1 - hidden) + HIDDEN_GREY * hidden,
        components(teacher).view(-1, *grid, 3),
        components(student).view(-1, *grid, 3),
        heat(error.cpu()).view(-1, *grid, 3),
    ]


def to_rgb(inputs: Tensor, normalization: Normalization | None = None) -> Tensor:
    """Normalised images (B, C, H, W) -> (B, H, W, 3) in 0..1: one channel is grey, of more than three the first three.

    Args:
        normalization: what they were normalised with, which is undone; None where nobody knows: each channel is stretched.
    """
    images = inputs.float().cpu()
    if normalization is not None:
        images = normalization.undone(images).clamp(0, 1)
    images = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    if normalization is None:
        low = images.amin(dim=(0, 2, 3), keepdim=True)
        high = images.amax(dim=(0, 2, 3), keepdim=True)
        images = (images - low) / (high - low).clamp_min(1e-6)
    return images.permute(0, 2, 3, 1)


def components(features: Tensor) -> Tensor:
    """The three first principal components of all tokens (B, N, D) -> (B, N, 3) in 0..1, the middle 96 % stretched."""
    tokens = features.float().cpu().flatten(0, 1)
    tokens = tokens - tokens.mean(dim=0)
    _, _, directions = torch.linalg.svd(tokens, full_matrices=False)
    directions = directions[:3]
    # The sign of a component is arbitrary: fixed, so that colours do not flip from one picture to the next.
    largest = directions.abs().argmax(dim=1, keepdim=True)
    directions = directions * directions.gather(1, largest).sign()
    colours = F.pad(tokens @ directions.T, (0, 3 - len(directions)))
    low, high = colours.quantile(0.02, dim=0), colours.quantile(0.98, dim=0)
    colours = ((colours - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
    return colours.view(*features.shape[:2], 3)


def heat(error: Tensor) -> Tensor:
    """Errors (T,) -> colours (T, 3): 0 black, 1 and more bright; NaN grey."""
    import matplotlib

    colours = torch.from_numpy(matplotlib.colormaps["inferno"](error.nan_to_num().clamp(0, 1).numpy())[:, :3]).float()
    colours[error.isnan()] = HIDDEN_GREY
    return colours


def draw(shown: list[Tensor], title: str) -> np.ndarray[Any, Any]:
    """Columns of pictures (B, rows, columns, 3) -> one picture (height, width, 3) uint8 with headings."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = len(shown[0])
    figure = Figure(figsize=(1.5 * len(shown), 1.5 * rows + 0.6), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=9)
    axes = figure.subplots(rows, len(shown), squeeze=False)
    for column, (name, pictures) in enumerate(zip(COLUMNS, shown, strict=True)):
        axes[0, column].set_title(name, fontsize=8)
        for row in range(rows):
            axes[row, column].imshow(pictures[row].numpy(), interpolation="nearest", vmin=0, vmax=1)
            axes[row, column].set_axis_off()
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def _send(trainer: pl.Trainer, image: np.ndarray[Any, Any], path: str, step: int) -> None:

    for logger in trainer.loggers:
        if isinstance(logger, pl.loggers.TensorBoardLogger):
            logger.experiment.add_image("pictures", image, step, dataformats="HWC")
        elif isinstance(logger, pl.loggers.WandbLogger):
            logger.log_image("pictures", [path], step=step)
