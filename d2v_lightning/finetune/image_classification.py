"""ImageClassifier: fine-tuning or linear probing of an image backbone (published: ImageNet-1K)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from d2v_lightning.callbacks.guards import guards
from d2v_lightning.checkpoints.backbones import load_backbone, regularised
from d2v_lightning.checkpoints.pretrained import FromPretrained
from d2v_lightning.flavour import pl, rank_zero_info, rank_zero_warn
from d2v_lightning.metrics import KeepsFigures, counted
from d2v_lightning.nn.backbone import Backbone
from d2v_lightning.nn.encoders import ImageEncoder
from d2v_lightning.nn.normalization import IMAGENET, Normalization, normalization_of
from d2v_lightning.optim.optimization import Optimization, run_length
from d2v_lightning.support.errors import UserError
from d2v_lightning.types import Batch, TakesPlainBatches, require

_NEEDS_LABELS = "classification needs pictures with classes, or ImageCollator() as the DataLoader's collate_fn"


class ImageClassifier(TakesPlainBatches, KeepsFigures, FromPretrained, pl.LightningModule):  # type: ignore[misc]  # a narrower load_from_checkpoint
    """A backbone, the mean of its patches, a layer norm and a linear head.

    The defaults are the released fine-tuning of data2vec 1.0 Base on ImageNet-1K (configs/finetune/imagenet_base.yaml).

    Args:
        num_classes: classes.
        backbone: a network to train from scratch; or
        checkpoint: a file to start from, see `load_backbone`. A checkpoint of the fine-tuned model holds the network
            itself and never looks for this file again.
        part: which network of a pre-training file to start from; published: the student.
        modality: of a checkpoint that was pre-trained on several, which one.
        image_size: pixels; None for the backbone's. Another size resizes the tables of positions.
        mean: of each channel, of values in 0..1: what pictures are normalised with, in training and ever after. None for what
            the backbone was trained with, or ImageNet's where that is not known. Published: .5 for 1.0 (BEiT's
            `run_class_finetuning.py` without `--imagenet_default_mean_and_std`), ImageNet's for 2.0.
        std: likewise.
        dropout, attention_dropout, activation_dropout, layer_drop, drop_path: of the trunk while fine-tuning, for a backbone
            from `checkpoint`, whatever they were in pre-training. Released: drop path alone (BEiT's
            `run_class_finetuning.py --attn_drop_rate 0.0`; 2.0's `mae_image_classification.py`).
        pooling: "mean" of the patches of the last block (published), or the "class_token" after the final norm.
        norm_eps: of the norm of the mean.
        head_std: the head starts normal with this deviation. 1.0: 2e-5; 2.0: .02.
        freeze_backbone: linear probing: only norm and head are trained, and the backbone stays in eval mode.
        mixup, cutmix: alpha of both (timm), one of the two is chosen for each batch; 0 turns one off.
        mixup_probability: how often a batch is mixed at all.
        label_smoothing: probability spread over all classes.
        optimization: optimiser, layer-wise decay, schedule.
        class_names: one for each class; taken from the datamodule where it knows them, and stored in checkpoints.
        gradient_checkpointing: see `Transformer`, for a backbone from `checkpoint`.
        compile: compile the trunk in place.

    Raises:
        ValueError: neither or both of `backbone` and `checkpoint`, or a bad file or argument.
    """

    on_progress_bar = ("loss", "top1", "top5")
    predicts = "labels"

    def __init__(
        self,
        num_classes: int = 1000,
        backbone: Backbone | None = None,
        checkpoint: str | None = None,
        part: Literal["student", "teacher"] = "student",
        modality: str | None = None,
        image_size: int | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        layer_drop: float = 0.0,
        drop_path: float = 0.2,
        pooling: Literal["mean", "class_token"] = "mean",
        norm_eps: float = 1e-6,
        head_std: float = 2e-5,
        freeze_backbone: bool = False,
        mixup: float = 0.8,
        cutmix: float = 1.0,
        mixup_probability: float = 1.0,
        label_smoothing: float = 0.1,
        optimization: Optimization | None = None,
        class_names: list[str] | None = None,
        gradient_checkpointing: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        if (backbone is None) == (checkpoint is None):
            raise UserError(
                "ImageClassifier needs exactly one of model.checkpoint (a pre-trained file to start from) and "
                "model.backbone (a network to train from scratch)"
            )
        if num_classes < 2:
            raise UserError(f"num_classes is {num_classes}: there must be at least 2")
        if pooling not in ("mean", "class_token"):
            raise UserError(f"pooling is {pooling!r}: choose 'mean' or 'class_token'")
        if mixup < 0 or cutmix < 0:
            raise UserError(f"mixup is {mixup}, cutmix {cutmix}: each is 0 (off) or positive")
        for name, share in (("mixup_probability", mixup_probability), ("label_smoothing", label_smoothing)):
            if not 0.0 <= share <= 1.0:
                raise UserError(f"{name} is {share}: a probability from 0 to 1 is needed")
        if checkpoint is not None:
            trunk = regularised(dropout, attention_dropout, activation_dropout, layer_drop)
            backbone = load_backbone(
                checkpoint, part, image_size, drop_path, gradient_checkpointing, trunk=trunk, modality=modality
            )
        assert backbone is not None
        if not isinstance(backbone.encoder, ImageEncoder):
            raise UserError(
                f"ImageClassifier needs an image backbone, this one has a {type(backbone.encoder).__name__}"
            )
        self.backbone = backbone
        seen = _normalization(backbone.encoder, mean, std, checkpoint or "the backbone")
        backbone.encoder.normalization = seen
        self.config["init_args"].update(
            backbone=backbone.config, checkpoint=None, modality=None, mean=seen.mean, std=seen.std
        )
        self.num_classes, self.class_names, self.pooling = num_classes, class_names, pooling
        self.freeze_backbone, self.compile_parts = freeze_backbone, compile
        self.label_smoothing = label_smoothing
        self.optimization = optimization or Optimization(
            lr=4e-3, weight_decay=0.0, layer_decay=0.65, warmup=0.1, final_lr=1e-6
        )
        self.norm = nn.LayerNorm(backbone.dim, eps=norm_eps) if pooling == "mean" else nn.Identity()
        self.head = nn.Linear(backbone.dim, num_classes)
        nn.init.normal_(self.head.weight, std=head_std)
        nn.init.zeros_(self.head.bias)
        if freeze_backbone:
            backbone.requires_grad_(False).eval()
        if pooling == "mean":  # the final norm is not used, and plain DDP waits for every trainable parameter
            backbone.transformer.norm.requires_grad_(False)
        self.mix = _mixer(mixup, cutmix, mixup_probability, label_smoothing, num_classes)

    @property
    def encoder(self) -> ImageEncoder:
        """The backbone's encoder, whose sizes a datamodule reads."""
        assert isinstance(self.backbone.encoder, ImageEncoder)
        return self.backbone.encoder

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, num_classes)."""
        tokens, _ = self.backbone.encoder.features(images)
        last = self.backbone.transformer.depth - 1
        output, results = self.backbone.contextualize(tokens, keep=[last])
        if self.pooling == "class_token":
            return self.head(output[:, 0])
        return self.head(self.norm(results[0].block[:, self.backbone.num_extra_tokens :].mean(dim=1)))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy, against mixed labels where mixup or cutmix is on."""
        require(batch, "inputs", "labels", remedy=_NEEDS_LABELS)
        images, labels = batch["inputs"], batch["labels"]
        smoothing = self.label_smoothing
        if self.mix is not None:
            images, labels = self._mixed(images, labels)
            smoothing = 0.0  # the mixed labels are smooth already
        loss = F.cross_entropy(self(images).float(), labels, label_smoothing=smoothing)
        self.log("train/loss", loss, batch_size=len(images))
        return loss

    def _mixed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed pictures (B, C, H, W) and their labels (B, num_classes). The mixer pairs pictures: where their number is odd,
        the last one comes twice, and what becomes of its double is thrown away."""
        number = len(images)
        if number % 2:
            images, labels = torch.cat([images, images[-1:]]), torch.cat([labels, labels[-1:]])
        mixed, soft = self.mix(images.clone(), labels)
        return mixed[:number], soft[:number]

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """`val/loss`, cross-entropy without smoothing, top-1 and top-5: means over all pictures."""
        self._evaluate(batch, dataloader_idx)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As `validation_step`, logged as `test/loss` and so on."""
        self._evaluate(batch, dataloader_idx)

    def _evaluate(self, batch: Batch, dataloader_idx: int) -> None:
        require(batch, "inputs", "labels", remedy=_NEEDS_LABELS)
        logits, labels, rows = self(batch["inputs"]).float(), batch["labels"], counted(batch)
        if rows is not None:
            logits, labels = logits[rows], labels[rows]
        figures = self.figures(dataloader_idx)
        figures["loss"].update(F.cross_entropy(logits, labels, reduction="none"))
        for name in figures if len(labels) else ():
            if name != "loss":
                figures[name].update(logits, labels)

    def new_figures(self, label: str) -> dict[str, Metric]:
        """The loss, top-1, and top-5 where there are more than five classes."""
        figures: dict[str, Metric] = {"loss": self.mean_loss()}
        figures["top1"] = MulticlassAccuracy(self.num_classes, average="micro")
        if self.num_classes > 5:
            figures["top5"] = MulticlassAccuracy(self.num_classes, top_k=5, average="micro")
        return figures

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """`index` (B,) of each sample, where the batch has it, and `probabilities` (B, num_classes)."""
        require(batch, "inputs", remedy="predicting needs pictures, alone or as the first of a tuple")
        probabilities = self(batch["inputs"]).float().softmax(dim=-1)
        return {"probabilities": probabilities, **({"index": batch["index"]} if "index" in batch else {})}

    def setup(self, stage: str) -> None:
        """Compile where asked to; take names and number of classes from the datamodule.

        Raises:
            ValueError: the data has another number of classes.
        """
        if self.compile_parts:
            self.backbone.transformer.compile()
        names = getattr(getattr(self.trainer, "datamodule", None), "class_names", None)
        if not names or stage == "predict":
            return
        if len(names) != self.num_classes:
            raise UserError(f"the data has {len(names)} classes, the model {self.num_classes}: set model.num_classes")
        if stage != "fit" and self.class_names and list(names) != list(self.class_names[: len(names)]):
            pairs = [pair for pair in zip(names, self.class_names, strict=False) if pair[0] != pair[1]]
            rank_zero_warn(
                f"{len(pairs)} classes have other names in the data than in the model, the first is {pairs[0][0]} and "
                f"{pairs[0][1]}: they are compared by their numbers"
            )
        if stage == "fit":
            self.class_names = list(names)
            self.config["init_args"]["class_names"] = self.class_names

    def run_through(self, batch: Batch) -> None:
        """Compute the outputs of a batch and forget them, for `HalfPrecisionCheck`."""
        self(batch["inputs"])

    def configure_optimizers(self) -> Any:
        return self.optimization.configure(self, run_length(self.trainer))

    def configure_callbacks(self) -> list[pl.Callback]:
        return guards(self.compile_parts)


def _normalization(encoder: ImageEncoder, mean: Any, std: Any, source: str) -> Normalization:
    """What a classifier's pictures are normalised with: as given, else as the network's were, else with ImageNet's values."""
    given = normalization_of(mean, std, encoder.in_channels, "model.")
    known = encoder.normalization
    if given is None and known is None:
        given = IMAGENET.of_channels(encoder.in_channels)
        rank_zero_info(
            f"{source} does not say how its pictures were normalised: taken are ImageNet's, {given} (model.mean and "
            "model.std for others)"
        )
    elif given is not None and known is not None and not given.agrees(known):
        rank_zero_info(f"pictures are normalised with {given}, as asked for; {source} was trained with {known}")
    seen = given or known
    assert seen is not None
    return seen


def _mixer(mixup: float, cutmix: float, probability: float, label_smoothing: float, num_classes: int) -> Any:
    if mixup == 0 and cutmix == 0:
        return None
    from timm.data.mixup import Mixup

    return Mixup(
        mixup_alpha=mixup,
        cutmix_alpha=cutmix,
        prob=probability,
        label_smoothing=label_smoothing,
        num_classes=num_classes,
    )
