"""Pretraining: how objectives are trained. Steps, gradients, optimiser, the teacher's callback."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any, Literal

import torch
from torch import Tensor
from torch._dynamo import maybe_mark_dynamic
from torchmetrics import Metric

from d2v_lightning.callbacks.ema_teacher import EMATeacher
from d2v_lightning.callbacks.finite_loss import named_samples
from d2v_lightning.callbacks.guards import guards
from d2v_lightning.checkpoints.pretrained import FromPretrained
from d2v_lightning.flavour import pl
from d2v_lightning.method.objective import Objective
from d2v_lightning.metrics import KeepsFigures, counted
from d2v_lightning.nn.encoders import TextEncoder
from d2v_lightning.nn.extraction import Extraction
from d2v_lightning.optim.optimization import Optimization, run_length
from d2v_lightning.optim.weighting import WeighsMicroBatches
from d2v_lightning.support.errors import UserError
from d2v_lightning.types import Batch, TakesPlainBatches, require

# Micro-batches are weighted by their hidden tokens, counted in units of this many.
_TOKENS_PER_UNIT = 4096


class Pretraining(WeighsMicroBatches, TakesPlainBatches, KeepsFigures, FromPretrained, pl.LightningModule, ABC):  # type: ignore[misc]  # a narrower load_from_checkpoint
    """The part of `Data2Vec` and `MultimodalData2Vec` that does not ask what is predicted."""

    predicts = "features"

    def _train_with(
        self, ema_teacher: EMATeacher, optimization: Optimization, compile: bool, on_nonfinite: Literal["stop", "skip"]
    ) -> None:
        """Keep the settings; to be called in the constructor."""
        if on_nonfinite not in ("stop", "skip"):
            raise UserError(f"on_nonfinite is {on_nonfinite!r}: choose 'stop' or 'skip'")
        self.ema_teacher, self.optimization = ema_teacher, optimization
        self.compile_parts, self.on_nonfinite = compile, on_nonfinite
        self._extraction = Extraction()
        self._running: Batch = {}  # the micro-batch between its loss and its backward pass

    @abstractmethod
    def objectives(self) -> Collection[Objective]:
        """All that is trained."""

    @abstractmethod
    def objective(self, batch: Batch) -> Objective:
        """What this batch is for."""

    def label(self, batch: Batch) -> str:
        """Goes in front of the names of what is logged for this batch."""
        return ""

    def ema_pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        """Parameters of all teachers and those of students that they average, each pair once, in the same order."""
        pairs: dict[int, tuple[Tensor, Tensor]] = {}
        for objective in self.objectives():
            for own, theirs in zip(*objective.teacher.pairs(objective.backbone), strict=True):
                pairs[id(own)] = own, theirs
        return [own for own, _ in pairs.values()], [theirs for _, theirs in pairs.values()]

    # ---- steps -------------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one micro-batch: the mean over its hidden tokens."""
        loss, hidden = self.objective(batch).regress(self._marked(batch))
        self.units = hidden.numel() / _TOKENS_PER_UNIT
        self._running = batch
        # `Progress` shows it: prog_bar would wait for it
        self.log(f"train/{self.label(batch)}loss", loss, batch_size=len(batch["inputs"]))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """The same loss on held-out data. It is no measure of quality: a collapsed model has a low one.

        `val/loss` is the mean over all hidden tokens of the data, whatever the batch size and the number of devices. Class
        tokens are left out of it, because their share in the training loss changes with the batch size:
        `val/class_token_loss` is their mean over rows. Targets normed over a batch ("batch", "position") and clips cropped to
        the shortest still depend on what is in a batch.
        """
        return self._evaluate(batch, dataloader_idx)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """As `validation_step`, logged as `test/loss`."""
        return self._evaluate(batch, dataloader_idx)

    def _evaluate(self, batch: Batch, dataloader_idx: int) -> Tensor:
        losses, hidden, of_rows = self.objective(batch).evaluate(self._marked(batch))
        figures, masks = self.figures(dataloader_idx, self.label(batch)), batch["mask"]
        rows = counted(batch)
        rows = None if rows is None else rows.repeat_interleave(masks.shape[1])
        figures["loss"].update(losses, None if rows is None else rows[hidden // masks.shape[2]])
        if of_rows is not None:
            figures["class_token_loss"].update(of_rows, rows)
        return losses.mean()

    def new_figures(self, label: str) -> dict[str, Metric]:
        """The mean loss of hidden tokens and, where they are trained, of class tokens."""
        measured = self.objective({"modality": label.rstrip("/")})
        names = ["loss", "class_token_loss"] if measured.class_loss else ["loss"]
        return {name: self.mean_loss() for name in names}

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor | dict[str, Any]:
        """Features of the last block, averaged over the tokens of each sample (B, D).

        Of recordings that may come in windows, see `datamodules.speech.windows`: {"features": [(D,), ...], "index": (R,)}, of
        those that are complete.
        """
        require(batch, "inputs", remedy="predicting needs inputs, alone or as the first of a tuple")
        index, rows = self._extraction(self.objective(batch).backbone, batch)
        rows = [row[0] for row in rows]
        return {"features": rows, "index": index} if "keep" in batch else torch.stack(rows)

    def on_predict_start(self) -> None:
        self._extraction.clear()

    def run_through(self, batch: Batch) -> None:
        """Compute the loss of a batch and forget it, for `HalfPrecisionCheck`."""
        self.objective(batch).regress(batch)

    def _marked(self, batch: Batch) -> Batch:
        """The batch; for the compiler, texts have as many hidden tokens as they happen to have."""
        if self.compile_parts and "hidden" in batch and isinstance(self.objective(batch).encoder, TextEncoder):
            maybe_mark_dynamic(batch["hidden"], 0)
        return batch

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
            for objective in self.objectives():
                # Lengths of texts differ by a few tokens, so one graph serves all; other sizes are static.
                dynamic = None if isinstance(objective.encoder, TextEncoder) else False
                objective.regress = torch.compile(objective.regress, dynamic=dynamic)  # type: ignore[method-assign]
                objective.evaluate = torch.compile(objective.evaluate, dynamic=dynamic)  # type: ignore[method-assign]

    def configure_optimizers(self) -> Any:
        return self.optimization.configure(self, run_length(self.trainer))

    def configure_callbacks(self) -> list[pl.Callback]:
        return [self.ema_teacher, *guards(self.compile_parts, finite=self.on_nonfinite == "stop")]
