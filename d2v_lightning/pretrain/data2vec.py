"""Data2Vec: the LightningModule for pre-training."""

from __future__ import annotations

from typing import Literal

from d2v_lightning.callbacks.ema_teacher import EMATeacher
from d2v_lightning.checkpoints.own import load_exactly
from d2v_lightning.checkpoints.pretrained import read_pretrained
from d2v_lightning.checkpoints.stored_normalization import take_over_normalization
from d2v_lightning.flavour import rank_zero_info
from d2v_lightning.method.losses import RegressionLoss
from d2v_lightning.method.objective import Objective
from d2v_lightning.method.student import MaskTokenStudent, VisibleStudent
from d2v_lightning.method.targets import Targets
from d2v_lightning.method.teacher import Scope
from d2v_lightning.nn.encoders import ImageEncoder
from d2v_lightning.optim.optimization import Optimization
from d2v_lightning.pretrain.pretraining import Pretraining
from d2v_lightning.support.errors import UserError
from d2v_lightning.types import Batch


class Data2Vec(Objective, Pretraining):  # type: ignore[misc]  # as in `Pretraining`
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
            rows of the batch and its masks (2.0 images: .01). As in the released code this is a sum over one micro-batch
            beside a mean: it weighs more the larger the batch of a device is, and accumulation does not change that. For
            the published weight with another batch size set it to .01 x the published one of a device / yours.
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
        if teacher_from not in ("teacher", "student"):
            raise UserError(f"teacher_from is {teacher_from!r}: choose 'teacher' or 'student'")
        super().__init__(student, targets, loss, teacher_scope, class_loss)
        self._train_with(ema_teacher, optimization, compile, on_nonfinite)
        if checkpoint is not None:
            self._warm_start(checkpoint, teacher_from)

    def _warm_start(self, path: str, teacher_from: Literal["teacher", "student"]) -> None:
        pretrained = read_pretrained(path)
        load_exactly(self.student, pretrained.part("student."), path)
        if teacher_from == "teacher":
            load_exactly(self.teacher, pretrained.part("teacher."), path)
        else:
            self.teacher.copy_from(self.backbone)
        self.backbone.licence, self.backbone.tokenizer = pretrained.licence, pretrained.tokenizer
        if isinstance(self.encoder, ImageEncoder) and self.encoder.normalization is None:
            take_over_normalization(self, pretrained.tree, path)
        rank_zero_info(f"warm start from {path}: the teacher starts as the file's {teacher_from}")
        self.config["init_args"]["checkpoint"] = None  # a checkpoint of this run holds the weights, not the path

    def objectives(self) -> list[Objective]:
        return [self]

    def objective(self, batch: Batch) -> Objective:
        return self
