"""MultimodalData2Vec: several modalities on one trunk, their batches in turn."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, cast

from torch import nn

from d2v_lightning.callbacks.ema_teacher import EMATeacher
from d2v_lightning.method.objective import Objective
from d2v_lightning.nn.backbone import Backbone
from d2v_lightning.nn.encoders import TextEncoder
from d2v_lightning.optim.optimization import Optimization
from d2v_lightning.pretrain.pretraining import Pretraining
from d2v_lightning.support.errors import UserError
from d2v_lightning.types import Batch, require


class MultimodalData2Vec(Pretraining):
    """Pre-training on batches that name their modality: encoder, decoder, targets and loss of each, one trunk for all.

    Student and teacher have one trunk each. An optimiser step touches the trunk and the encoder and decoder of the modality
    whose turn it is (see `MultimodalDataModule`); all teachers follow. On several devices this needs
    `trainer.strategy: ddp_find_unused_parameters_true`, because the other modalities have no gradient in that step.

    Losses are logged as `train/<modality>/loss`; `CollapseMonitor` and `OnlineProbe` take the modality that they look at.
    `load_backbone(path, modality=...)` and the fine-tuning modules' `modality` take one modality out of a checkpoint.

    Args:
        modalities: what each is trained for, as in `Data2Vec`. Their `student.backbone.transformer` must be the same.
        ema_teacher: how the teachers follow the students.
        optimization: optimiser, parameter groups, schedule.
        compile: see `Data2Vec`.
        on_nonfinite: see `Data2Vec`.

    Raises:
        ValueError: there is no modality, a name that is no identifier, or trunks that differ.
    """

    def __init__(
        self,
        modalities: dict[str, Objective],
        ema_teacher: EMATeacher,
        optimization: Optimization,
        compile: bool = False,
        on_nonfinite: Literal["stop", "skip"] = "stop",
    ) -> None:
        super().__init__()
        bad = [name for name in modalities if not name.isidentifier()]
        if bad or not modalities:
            raise UserError(f"modalities is {list(modalities)}: give one or more, named like 'image' or 'speech'")
        share_trunk(modalities)
        self.modalities = nn.ModuleDict(modalities)
        self._train_with(ema_teacher, optimization, compile, on_nonfinite)

    def objectives(self) -> Collection[Objective]:
        return cast(Collection[Objective], self.modalities.values())

    def objective(self, batch: Batch) -> Objective:
        """The objective of the batch's modality.

        Raises:
            ValueError: the batch names none, or one that the model does not have.
        """
        require(batch, "modality", remedy="a run of several modalities needs the batches of MultimodalDataModule")
        if batch["modality"] not in self.modalities:
            raise UserError(f"a batch of {batch['modality']!r}, the model has {', '.join(self.modalities)}")
        return cast(Objective, self.modalities[batch["modality"]])

    def label(self, batch: Batch) -> str:
        return f"{batch['modality']}/"

    @property
    def backbone(self) -> Backbone:
        """The one that carries what a checkpoint holds beside weights: the first of text, for its tokenizer, or the first."""
        backbones = [objective.backbone for objective in self.objectives()]
        return next((backbone for backbone in backbones if isinstance(backbone.encoder, TextEncoder)), backbones[0])


def share_trunk(modalities: dict[str, Objective]) -> None:
    """Make the first one's trunk, of student and of teacher, that of all.

    Raises:
        ValueError: the trunks are not of one kind.
    """
    first, *others = modalities
    student, teacher = modalities[first].backbone, modalities[first].teacher
    for name in others:
        ours, theirs = (
            student.transformer.config["init_args"],
            modalities[name].backbone.transformer.config["init_args"],
        )
        differing = [key for key in ours if ours[key] != theirs[key]]
        if differing:
            key = differing[0]
            raise UserError(
                f"one trunk for all modalities, but transformer.{key} is {ours[key]!r} for {first} and {theirs[key]!r} for "
                f"{name}: make them equal"
            )
        modalities[name].backbone.transformer = student.transformer
        modalities[name].teacher.transformer = teacher.transformer
