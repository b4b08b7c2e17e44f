"""Objective: the method itself. A student predicts, at hidden positions, what its teacher makes of the whole input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from d2v_lightning.configurable import Configurable
from d2v_lightning.method.losses import RegressionLoss
from d2v_lightning.method.positions import hidden_positions, take_tokens
from d2v_lightning.method.student import MaskTokenStudent, Predictions, VisibleStudent
from d2v_lightning.method.targets import Targets, mean_inside
from d2v_lightning.method.teacher import Scope, Teacher
from d2v_lightning.nn.backbone import Backbone
from d2v_lightning.nn.encoders import Encoder
from d2v_lightning.support.errors import UserError
from d2v_lightning.types import Batch, require

_NEEDS_MASKS = "pre-training needs data.task 'pretrain', or BlockMaskCollator(grid) as the DataLoader's collate_fn"


class Objective(Configurable, nn.Module):
    """What is computed of one batch, without how it is trained: student, teacher, targets, loss.

    `Data2Vec` is one of these that trains itself, `MultimodalData2Vec` trains several.

    Args:
        student: backbone, masking and decoder.
        targets: what the teacher's layers become.
        loss: between predictions and targets.
        teacher_scope: how much of the backbone the teacher holds, see `Teacher`.
        class_loss: see `Data2Vec`; it is summed over the rows of a batch, so its weight changes with the batch size.

    Raises:
        ValueError: `class_loss` without a class token, or more layers to average than the trunk has. The message names the
            encoder, which in a run of several modalities says whose settings they are.
    """

    def __init__(
        self,
        student: MaskTokenStudent | VisibleStudent,
        targets: Targets,
        loss: RegressionLoss,
        teacher_scope: Scope = "backbone",
        class_loss: float = 0.0,
    ) -> None:
        super().__init__()
        self.student = student
        self.teacher = Teacher(student.backbone, teacher_scope)
        self.make_targets, self.loss = targets, loss
        if class_loss and student.backbone.num_extra_tokens != 1:
            raise UserError(f"class_loss is {class_loss}, but {self._encoder_name} makes no class token: set it to 0")
        self.class_loss = class_loss
        trunk = student.backbone.transformer
        try:
            self.averaged_layers = targets.layers(trunk.depth, trunk.prenet_depth)
        except ValueError as error:
            raise UserError(f"targets for {self._encoder_name}: {error}") from error

    @property
    def backbone(self) -> Backbone:
        """The student's backbone."""
        return self.student.backbone

    @property
    def encoder(self) -> Encoder:
        """The student's encoder, whose sizes a datamodule reads."""
        return self.student.backbone.encoder

    @property
    def _encoder_name(self) -> str:
        return type(self.encoder).__name__

    def regress(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss, the mean over hidden tokens, and the flat positions (P,) in (B, M, N) that it was taken at."""
        said, wanted, hidden = self._compared(batch)
        loss = self.loss(said.hidden, wanted.hidden)
        if self.class_loss:
            loss = loss + self.class_loss * len(wanted.extra) * self.loss(said.extra[:, 0], wanted.extra)
        return loss, hidden

    def evaluate(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Losses one by one: of each hidden token (P,), its flat position (P,), and with `class_loss` of each row's class
        token (B x M,)."""
        said, wanted, hidden = self._compared(batch)
        of_rows = self.loss.one_by_one(said.extra[:, 0], wanted.extra) if self.class_loss else None
        return self.loss.one_by_one(said.hidden, wanted.hidden), hidden, of_rows

    def _compared(self, batch: Batch) -> tuple[Predictions, Predictions, Tensor]:
        """What the student says and what it should have said, and the flat positions (P,) of the hidden tokens.

        What it should have said is at hidden tokens (P, D) and at class tokens (B x M, D).
        """
        require(batch, "inputs", "mask", remedy=_NEEDS_MASKS)
        tokens, padding_mask = self._student_tokens(batch)
        hidden = batch["hidden"] if "hidden" in batch else self._hidden(batch, padding_mask)
        predictions = self._predict(batch, tokens, padding_mask, hidden)
        targets = self._targets(batch, tokens, padding_mask)
        num_masks = batch["mask"].shape[1]
        means = predictions.extra
        if self.class_loss:
            means = self._sample_means(targets, padding_mask).repeat_interleave(num_masks, dim=0)
        return predictions, Predictions(take_tokens(targets, hidden, num_masks), means), hidden

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
        return hidden_positions(batch["mask"], self._excluded(padding_mask))

    def _excluded(self, padding_mask: Tensor | None) -> Tensor | None:
        """Padding (B, N), True = padding, that nothing may depend on; None where the encoder does as the released code."""
        return padding_mask if self.encoder.padding == "exact" else None

    def _sample_means(self, targets: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Targets (B, N, D) averaged over the tokens of each sample that are not padding (B, N), True = padding -> (B, D)."""
        padding_mask = self._excluded(padding_mask)
        return targets.mean(dim=1) if padding_mask is None else mean_inside(targets, ~padding_mask, over=1)[:, 0]

    @torch.no_grad()
    def _targets(self, batch: Batch, tokens: Tensor, padding_mask: Tensor | None) -> Tensor:
        results = self._layer_results(batch, tokens, padding_mask)
        return self.make_targets(results, self._excluded(padding_mask))

    def _layer_results(self, batch: Batch, tokens: Tensor, padding_mask: Tensor | None) -> list[Tensor]:
        results = self.teacher(self.backbone, batch["inputs"], tokens, padding_mask, keep=self.averaged_layers)
        extra = self.backbone.num_extra_tokens
        return [result[:, extra:] for result in self.make_targets.select(results)]

    def _student_tokens(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        tokens, padding_mask = self.encoder.features(batch["inputs"], batch.get("padding_mask"))
        return tokens, padding_mask
