"""Data2Vec: the one LightningModule for pre-training."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from pytorch_lightning import Callback, LightningModule
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from d2v_lightning.backbone import Backbone
from d2v_lightning.callbacks.ema_teacher import EMATeacher
from d2v_lightning.callbacks.finite_loss import FiniteLoss, named_samples
from d2v_lightning.callbacks.step_seed import StepSeed
from d2v_lightning.encoders import Encoder
from d2v_lightning.losses import RegressionLoss
from d2v_lightning.masking import hidden_positions, take_tokens
from d2v_lightning.optim import Optimization
from d2v_lightning.pretrained import FromPretrained, read_pretrained
from d2v_lightning.saving import load_exactly
from d2v_lightning.student import MaskTokenStudent, Predictions, VisibleStudent
from d2v_lightning.targets import Targets
from d2v_lightning.teacher import Scope, Teacher
from d2v_lightning.types import Batch, require
from d2v_lightning.weighting import WeighsMicroBatches

# Micro-batches are weighted by their hidden tokens, counted in units of this many.
_TOKENS_PER_UNIT = 4096

_NEEDS_MASKS = "pre-training needs data.task 'pretrain', or BlockMaskCollator(grid) as the DataLoader's collate_fn"


class Data2Vec(WeighsMicroBatches, FromPretrained, LightningModule):  # type: ignore[misc]  # a narrower load_from_checkpoint
    """Pre-training: the student predicts, at hidden positions, what an EMA teacher makes of the whole input.

    Owns the teacher (a frozen sub-module) and the callback that moves it, which it hands to any Trainer.

    Args:
        student: backbone, masking and decoder.
        targets: what the teacher's layers become.
        loss: between predictions and targets.
        ema_teacher: how the teacher follows the student.
        optimization: optimiser, parameter groups, schedule.
        teacher_scope: how much of the backbone the teacher holds, see `Teacher`. Images: "backbone".
        class_loss: weight of the same loss between the student's class token and the mean of the targets, summed over the
            rows of the batch and its masks (2.0 images: .01).
        compile: compile the step from inputs to loss (`torch.compile`); parameters keep their names.
        on_nonfinite: a loss that is not finite "stop"s the run before it touches the weights on a CPU and one step later
            on a GPU, where waiting for every loss would stall the device; "skip" leaves the micro-batch out, on all ranks
            alike, at the price of that wait. Either way the batch is named.
        checkpoint: warm start: weights of student and teacher from one of our checkpoints or one of Meta's files, with a
            fresh optimiser and schedule. The file's network must be this one.
        teacher_from: which of the file's networks the teacher starts from; said at the start.
    """

    def __init__(
        self,
        student: MaskTokenStudent | VisibleStudent,
        targets: Targets,
        loss: RegressionLoss,
        ema_teacher: EMATeacher,
        optimization: Optimization,
        teacher_scope: Scope = "backbone",
        class_loss: float = 0.0,
        compile: bool = False,
        on_nonfinite: Literal["stop", "skip"] = "stop",
        checkpoint: str | None = None,
        teacher_from: Literal["teacher", "student"] = "teacher",
    ) -> None:
        super().__init__()
        if teacher_from not in ("teacher", "student"):
            raise ValueError(f"teacher_from is {teacher_from!r}: choose 'teacher' or 'student'")
        if on_nonfinite not in ("stop", "skip"):
            raise ValueError(f"on_nonfinite is {on_nonfinite!r}: choose 'stop' or 'skip'")
        self.student = student
        self.teacher = Teacher(student.backbone, teacher_scope)
        self.make_targets, self.loss = targets, loss
        self.ema_teacher, self.optimization = ema_teacher, optimization
        self.compile_parts, self.on_nonfinite = compile, on_nonfinite
        if class_loss and student.backbone.num_extra_tokens != 1:
            raise ValueError(f"class_loss is {class_loss}, but the encoder makes no class token: set it to 0")
        self.class_loss = class_loss
        self.averaged_layers = targets.layers(
            student.backbone.transformer.depth, student.backbone.transformer.prenet_depth
        )
        if checkpoint is not None:
            self._warm_start(checkpoint, teacher_from)
        self._running: Batch = {}  # the micro-batch between its loss and its backward pass

    def _warm_start(self, path: str, teacher_from: Literal["teacher", "student"]) -> None:
        pretrained = read_pretrained(path)
        load_exactly(self.student, pretrained.part("student."), path)
        if teacher_from == "teacher":
            load_exactly(self.teacher, pretrained.part("teacher."), path)
        else:
            self.teacher.copy_from(self.backbone)
        self.backbone.tokenizer = pretrained.content.tokenizer
        rank_zero_info(f"warm start from {path}: the teacher starts as the file's {teacher_from}")
        self.config["init_args"]["checkpoint"] = None  # a checkpoint of this run holds the weights, not the path

    @property
    def backbone(self) -> Backbone:
        """The student's backbone."""
        return self.student.backbone

    @property
    def encoder(self) -> Encoder:
        """The student's encoder, whose sizes a datamodule reads."""
        return self.student.backbone.encoder

    # ---- the method ------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one micro-batch: the mean over its hidden tokens."""
        loss, hidden = self._regress(batch)
        self.units = hidden.numel() / _TOKENS_PER_UNIT
        self._running = batch
        self.log("train/loss", loss, batch_size=len(batch["inputs"]))  # `Progress` shows it: prog_bar would wait for it
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The same loss on held-out data. It is no measure of quality: a collapsed model has a low one."""
        loss, _ = self._regress(batch)
        self.log("val/loss", loss, prog_bar=True, batch_size=len(batch["inputs"]), sync_dist=True)
        return loss

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss, _ = self._regress(batch)
        self.log("test/loss", loss, batch_size=len(batch["inputs"]), sync_dist=True)
        return loss

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Features of the last block, averaged over the tokens of each sample (B, D)."""
        features = self.backbone.features(batch["inputs"], batch.get("padding_mask"), layers=[-1])
        tokens, padding = features.layers[0], features.padding_mask
        if padding is not None:
            tokens = tokens.masked_fill(padding[..., None], 0.0)
        return tokens.sum(dim=1) / features.lengths[:, None]

    def _regress(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss and the flat positions (P,) that it was taken at."""
        require(batch, "inputs", "mask", remedy=_NEEDS_MASKS)
        tokens, padding_mask = self._student_tokens(batch)
        hidden = batch["hidden"] if "hidden" in batch else self._hidden(batch, padding_mask)
        predictions = self._predict(batch, tokens, padding_mask, hidden)
        targets = self._targets(batch, tokens, padding_mask)
        num_masks = batch["mask"].shape[1]
        loss = self.loss(predictions.hidden, take_tokens(targets, hidden, num_masks))
        if self.class_loss:
            means = targets.mean(dim=1).repeat_interleave(num_masks, dim=0)
            loss = loss + self.class_loss * len(means) * self.loss(predictions.extra[:, 0], means)
        return loss, hidden

    def targets(self, batch: Batch) -> Tensor:
        """Targets at every position (B, N, D), float32."""
        return self._targets(batch, *self._student_tokens(batch))

    def teacher_layer_results(self, batch: Batch) -> list[Tensor]:
        """The K averaged layer results of the teacher, lowest block first, each (B, N, D), not normalised."""
        return self._layer_results(batch, *self._student_tokens(batch))

    def predictions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The student's predictions (P, D) and their flat positions (P,) in (B, M, N)."""
        tokens, padding_mask = self._student_tokens(batch)
        hidden = self._hidden(batch, padding_mask)
        return self._predict(batch, tokens, padding_mask, hidden).hidden, hidden

    def _predict(self, batch: Batch, tokens: Tensor, padding_mask: Tensor | None, hidden: Tensor) -> Predictions:
        corrupted, visible = batch.get("corrupted"), batch.get("visible")
        return self.student(tokens, padding_mask, batch["mask"], hidden, corrupted, visible)

    def _hidden(self, batch: Batch, padding_mask: Tensor | None) -> Tensor:
        return hidden_positions(batch["mask"], padding_mask if self.encoder.padding == "exact" else None)

    @torch.no_grad()
    def _targets(self, batch: Batch, tokens: Tensor, padding_mask: Tensor | None) -> Tensor:
        results = self._layer_results(batch, tokens, padding_mask)
        return self.make_targets(results, padding_mask if self.encoder.padding == "exact" else None)

    def _layer_results(self, batch: Batch, tokens: Tensor, padding_mask: Tensor | None) -> list[Tensor]:
        results = self.teacher(self.backbone, batch["inputs"], tokens, padding_mask, keep=self.averaged_layers)
        extra = self.backbone.num_extra_tokens
        return [result[:, extra:] for result in self.make_targets.select(results)]

    def _student_tokens(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        tokens, padding_mask = self.encoder.features(batch["inputs"], batch.get("padding_mask"))
        return tokens, padding_mask

    # ---- gradients -------------------------------------------------------------------------------------------------

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if self.on_nonfinite == "skip" and self._any_rank_nonfinite(loss):
            if not torch.isfinite(loss):
                where = f"optimiser step {self.global_step}{named_samples(self._running)}"
                warnings.warn(f"loss is {loss.item()} at {where}: this micro-batch is left out", stacklevel=1)
            return
        super().backward(loss, *args, **kwargs)

    def _any_rank_nonfinite(self, loss: Tensor) -> bool:
        bad = (~torch.isfinite(loss.detach())).float()
        return bool(self.trainer.strategy.reduce(bad, reduce_op="sum") > 0)

    # ---- Lightning ---------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        if self.compile_parts:
            # Everything from inputs to loss as one graph, so that student, teacher and probes do not share a cache.
            self._regress = torch.compile(self._regress, dynamic=False)  # type: ignore[method-assign]

    def configure_optimizers(self) -> Any:
        return self.optimization.configure(self, int(self.trainer.estimated_stepping_batches))

    def configure_callbacks(self) -> list[Callback]:
        guard = [FiniteLoss()] if self.on_nonfinite == "stop" else []
        return [self.ema_teacher, StepSeed(), *guard]
