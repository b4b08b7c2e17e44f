"""GLUEClassifier: fine-tuning of a text backbone on a GLUE task, or on any sentences or pairs with labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.classification import BinaryF1Score, MulticlassAccuracy, MulticlassMatthewsCorrCoef
from torchmetrics.regression import PearsonCorrCoef, SpearmanCorrCoef

from d2v_lightning.callbacks.guards import guards
from d2v_lightning.checkpoints.backbones import load_backbone, regularised
from d2v_lightning.checkpoints.pretrained import FromPretrained
from d2v_lightning.finetune.glue_tasks import METRICS, TASKS, GlueTask
from d2v_lightning.flavour import pl
from d2v_lightning.metrics import KeepsFigures, counted
from d2v_lightning.nn.backbone import Backbone
from d2v_lightning.nn.encoders import TextEncoder
from d2v_lightning.optim.optimization import Optimization, run_length
from d2v_lightning.support.errors import UserError
from d2v_lightning.types import Batch, TakesPlainBatches, require

STSB_SCALE = 5.0  # similarities go from 0 to 5; the released fine-tuning learns them as 0 to 1
_NEEDS_LABELS = "fine-tuning needs sentences with labels, as GLUEDataModule reads them"


class Kind(NamedTuple):
    """What a task asks for: `num_classes` (1 = a number), the `metrics` whose mean is its score."""

    num_classes: int
    metrics: tuple[str, ...]


class GLUEClassifier(TakesPlainBatches, KeepsFigures, FromPretrained, pl.LightningModule):  # type: ignore[misc]  # a narrower load_from_checkpoint
    """A backbone and, on its first token, RoBERTa's head: dropout, linear, tanh, dropout, linear.

    The defaults are the released fine-tuning of data2vec 2.0 on SST-2 (configs/finetune/glue/sst2.yaml).

    Logged at validation and test: the loss, a mean over samples, the task's own metrics and `score`, their mean, which the
    papers report; of classes the accuracy always, which released 1.0 keeps an epoch by. Those of MNLI's second set of pairs
    are called `mismatched_accuracy` and so on.

    Args:
        task: one of GLUE's nine; "custom" for sentences of your own, with accuracy.
        num_classes: for "custom"; 1 learns a number.
        backbone: a network to train from scratch; or
        checkpoint: a file to start from, see `load_backbone`. A checkpoint of the fine-tuned model holds the network
            itself and never looks for this file again.
        part: which network of a pre-training file to start from.
        modality: of a checkpoint that was pre-trained on several, which one.
        dropout, attention_dropout, activation_dropout, layer_drop, drop_path: of the trunk while fine-tuning, for a backbone
            from `checkpoint`, whatever they were in pre-training. Released: `examples/roberta/config/finetuning` (1.0), and
            in 2.0 what `base_text_only_task.yaml` was pre-trained with, which are the same.
        head_dropout: before both linear maps of the head. Released: `pooler_dropout` 0.0, in 1.0 and 2.0.
        freeze_backbone: linear probing: only the head is trained, and the backbone stays in eval mode.
        optimization: optimiser and schedule.
        class_names: one for each class; taken from the datamodule where it knows them, and stored in checkpoints.
        compile: compile the trunk in place.

    Raises:
        ValueError: neither or both of `backbone` and `checkpoint`, or a bad file or argument.
    """

    on_progress_bar = ("score",)
    predicts = "labels"

    def __init__(
        self,
        task: GlueTask = "sst2",
        num_classes: int | None = None,
        backbone: Backbone | None = None,
        checkpoint: str | None = None,
        part: Literal["student", "teacher"] = "student",
        modality: str | None = None,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        activation_dropout: float = 0.0,
        layer_drop: float = 0.0,
        drop_path: float = 0.0,
        head_dropout: float = 0.0,
        freeze_backbone: bool = False,
        optimization: Optimization | None = None,
        class_names: list[str] | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        if (backbone is None) == (checkpoint is None):
            raise UserError(
                "GLUEClassifier needs exactly one of model.checkpoint (a pre-trained file to start from) and "
                "model.backbone (a network to train from scratch)"
            )
        if task not in (*TASKS, "custom"):
            raise UserError(f"task is {task!r}: choose from {', '.join(TASKS)}, custom")
        if (task == "custom") != (num_classes is not None):
            raise UserError(
                f"task is {task!r}, num_classes {num_classes}: give num_classes for 'custom', and only there"
            )
        if not 0.0 <= head_dropout < 1.0:
            raise UserError(f"head_dropout is {head_dropout}: it must lie in [0, 1)")
        if checkpoint is not None:
            trunk = regularised(dropout, attention_dropout, activation_dropout, layer_drop)
            backbone = load_backbone(checkpoint, part, drop_path=drop_path, trunk=trunk, modality=modality)
        assert backbone is not None
        if not isinstance(backbone.encoder, TextEncoder):
            raise UserError(f"GLUEClassifier needs a text backbone, this one has a {type(backbone.encoder).__name__}")
        self.backbone = backbone
        self.config["init_args"].update(backbone=backbone.config, checkpoint=None, modality=None)
        self.task = task
        if num_classes is None:
            self.kind = Kind(TASKS[task].num_classes, METRICS[task])
        else:
            self.kind = Kind(num_classes, METRICS["stsb"] if num_classes == 1 else ("accuracy",))
        self.class_names, self.freeze_backbone, self.compile_parts = class_names, freeze_backbone, compile
        self.optimization = optimization or Optimization(
            lr=2e-5,
            betas=(0.9, 0.98),
            eps=1e-6,
            weight_decay=0.1,
            decay_all=True,
            schedule="polynomial",
            warmup=0.06,
            final_lr=0.0,
        )
        self.dropout = nn.Dropout(head_dropout)
        self.dense = nn.Linear(backbone.dim, backbone.dim)
        self.out_proj = nn.Linear(backbone.dim, self.kind.num_classes)
        for linear in (self.dense, self.out_proj):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        if freeze_backbone:
            backbone.requires_grad_(False).eval()

    @property
    def encoder(self) -> TextEncoder:
        """The backbone's encoder, whose sizes a datamodule reads."""
        assert isinstance(self.backbone.encoder, TextEncoder)
        return self.backbone.encoder

    def forward(self, inputs: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Ids (B, T) and their padding (B, T), True = padding -> logits (B, num_classes), or numbers (B, 1)."""
        first = self.backbone(inputs, padding_mask)[:, 0]
        return self.out_proj(self.dropout(torch.tanh(self.dense(self.dropout(first)))))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy; the squared error of numbers scaled to 0 to 1 for similarities."""
        loss = self._losses(batch)[0].mean()
        self.log("train/loss", loss, batch_size=len(batch["inputs"]))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch, dataloader_idx)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch, dataloader_idx)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """`index` (B,) where the batch has it, and `probabilities` (B, num_classes), or `values` (B,) of a number."""
        require(batch, "inputs", remedy="predicting needs token ids, alone or as the first of a tuple")
        outputs = self(batch["inputs"], batch.get("padding_mask")).float()
        index = {"index": batch["index"]} if "index" in batch else {}
        if self.kind.num_classes == 1:
            return {"values": outputs[:, 0] * STSB_SCALE, **index}
        return {"probabilities": outputs.softmax(dim=-1), **index}

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss of each sample (B,), and the outputs."""
        require(batch, "inputs", "labels", remedy=_NEEDS_LABELS)
        outputs = self(batch["inputs"], batch.get("padding_mask")).float()
        if self.kind.num_classes == 1:
            targets = batch["labels"].float() / STSB_SCALE
            return F.mse_loss(outputs[:, 0], targets, reduction="none"), outputs
        return F.cross_entropy(outputs, batch["labels"], reduction="none"), outputs

    def _evaluate(self, batch: Batch, dataloader_idx: int) -> None:
        losses, outputs = self._losses(batch)
        labels, rows = batch["labels"], counted(batch)
        figures = self.figures(dataloader_idx, "mismatched_" if self.task == "mnli" and dataloader_idx == 1 else "")
        figures["loss"].update(losses, rows)
        if rows is not None:
            outputs, labels = outputs[rows], labels[rows]
        if self.kind.num_classes == 1:
            found, labels = (outputs[:, 0] * STSB_SCALE).to(self.sum_dtype), labels.to(self.sum_dtype)
        else:
            found = outputs.argmax(dim=-1)
        for name in figures.keys() - {"loss"} if len(labels) else ():
            figures[name].update(found, labels)

    def new_figures(self, label: str) -> dict[str, Metric]:
        """The loss and the task's metrics."""
        return {"loss": self.mean_loss(), **_metrics(self.kind, self.sum_dtype)}

    def scores(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The figures, and as `score` the mean of the task's metrics."""
        return {**values, "score": torch.stack([values[name] for name in self.kind.metrics]).mean()}

    def setup(self, stage: str) -> None:
        """Compile where asked to; take the names of the classes from the datamodule.

        Raises:
            ValueError: the data is of another task.
        """
        if self.compile_parts:
            self.backbone.transformer.compile()
        data = getattr(self.trainer, "datamodule", None)
        other = getattr(data, "task", self.task)
        if other != self.task and stage != "predict":
            raise UserError(
                f"the data is of task {other!r}, the model of {self.task!r}: set model.task and data.task alike"
            )
        names = getattr(data, "class_names", None)
        if stage == "fit" and names:
            if len(names) != self.kind.num_classes:
                raise UserError(f"the data has {len(names)} classes, the model {self.kind.num_classes}")
            self.class_names = list(names)
            self.config["init_args"]["class_names"] = self.class_names

    def run_through(self, batch: Batch) -> None:
        """Compute the outputs of a batch and forget them, for `HalfPrecisionCheck`."""
        self(batch["inputs"], batch.get("padding_mask"))

    def configure_optimizers(self) -> Any:
        return self.optimization.configure(self, run_length(self.trainer))

    def configure_callbacks(self) -> list[pl.Callback]:
        return guards(self.compile_parts)


class Matthews(MulticlassMatthewsCorrCoef):
    """Matthews correlation that is 0, as scikit-learn's, where only one class is predicted or occurs."""

    def compute(self) -> Tensor:
        used = min(int((self.confmat.sum(dim=dim) > 0).sum()) for dim in (0, 1))
        return super().compute() if used > 1 else self.confmat.new_zeros((), dtype=torch.float32)


def _metrics(kind: Kind, dtype: torch.dtype) -> dict[str, Metric]:
    makers: dict[str, Callable[[], Metric]] = {
        "accuracy": lambda: MulticlassAccuracy(max(2, kind.num_classes), average="micro"),
        "f1": BinaryF1Score,
        "matthews": lambda: Matthews(max(2, kind.num_classes)),
        "pearson": lambda: PearsonCorrCoef().set_dtype(dtype),  # sums of squares: float32 would cost digits
        "spearman": SpearmanCorrCoef,
    }
    measured = dict.fromkeys((*kind.metrics, *(["accuracy"] if kind.num_classes > 1 else [])))
    return {name: makers[name]() for name in measured}
