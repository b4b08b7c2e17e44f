"""Figures of an evaluation: every sample counts once, on any number of devices, and each set of data has its own."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from d2v_lightning.types import Batch

_WITHOUT_FLOAT64 = ("mps", "tpu")


class MeanLoss(Metric):
    """Mean of losses that are given one by one, summed in float64 where the device has it.

    So the batch size and the number of devices do not matter: the mean is over all of them, not over means of batches.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False
    total: Tensor
    number: Tensor

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        for name in ("total", "number"):
            self.add_state(name, torch.zeros((), dtype=dtype), dist_reduce_fx="sum")

    def update(self, losses: Tensor, counts: Tensor | None = None) -> None:
        """Take in losses of any shape; `counts`, bool of the same shape, says which of them count, by default all."""
        losses = losses.detach().to(self.total.dtype)
        self.total += (losses if counts is None else losses.where(counts, 0.0)).sum()
        self.number += losses.numel() if counts is None else counts.sum()

    def compute(self) -> Tensor:
        return self.total / self.number


class KeepsFigures:
    """Mixin for a LightningModule that validates and tests. A subclass says what it measures in `new_figures`, and its steps
    update what `figures` gives them.

    Logged at the end, over all ranks: `val/loss` and so on. Where several loaders give the same figures, those of each are
    logged with Lightning's `/dataloader_idx_N`. Those of the first also have the plain name, which callbacks watch.
    """

    on_progress_bar: ClassVar[tuple[str, ...]] = ("loss",)
    _kept: dict[tuple[str, int], dict[str, Metric]] | None = None

    def new_figures(self, label: str) -> dict[str, Metric]:
        """A metric for each figure of one set of data, see `figures`."""
        raise NotImplementedError(f"{type(self).__name__} must define new_figures(label)")

    def scores(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is logged, from what the metrics say."""
        return values

    def figures(self, dataloader_idx: int, label: str = "") -> Any:
        """Metrics by name, of one loader in the running evaluation. `label` goes in front of the names."""
        self._kept = {} if self._kept is None else self._kept
        if (label, dataloader_idx) not in self._kept:
            device: torch.device = self.device  # type: ignore[attr-defined]  # LightningModule's
            made = self.new_figures(label)
            self._kept[label, dataloader_idx] = {name: metric.to(device) for name, metric in made.items()}
        return self._kept[label, dataloader_idx]

    def mean_loss(self) -> MeanLoss:
        """For `new_figures`."""
        return MeanLoss(self.sum_dtype)

    @property
    def sum_dtype(self) -> torch.dtype:
        """What sums over all samples are kept in."""
        device: torch.device = self.device  # type: ignore[attr-defined]
        return torch.float32 if device.type in _WITHOUT_FLOAT64 else torch.float64

    def on_validation_epoch_start(self) -> None:
        self._kept = {}

    def on_test_epoch_start(self) -> None:
        self._kept = {}

    def on_validation_epoch_end(self) -> None:
        self._log_figures("val")

    def on_test_epoch_end(self) -> None:
        self._log_figures("test")

    def _log_figures(self, stage: str) -> None:
        kept = sorted(self._everywhere(set(self._kept or {})))
        for label, place in kept:
            places = [other for name, other in kept if name == label]
            found = self.scores({name: metric.compute() for name, metric in self.figures(place, label).items()})
            for name, value in found.items():
                plain = f"{stage}/{label}{name}"
                names = [f"{plain}/dataloader_idx_{place}"] if len(places) > 1 else []
                names += [plain] if place == places[0] else []
                for whole in names:
                    self.log(  # type: ignore[attr-defined]
                        whole,
                        value,
                        prog_bar=name in self.on_progress_bar,
                        sync_dist=True,  # every rank has the same number: nothing changes, and Lightning does not warn
                        reduce_fx="max",
                        add_dataloader_idx=False,
                    )
        self._kept = None

    def _everywhere(self, kept: set[tuple[str, int]]) -> set[tuple[str, int]]:
        """What any rank has figures of: one that got no batch must take part in the sums all the same."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return kept
        shares: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(shares, kept)
        return set().union(*shares)


def counted(batch: Batch) -> Tensor | None:
    """Rows of a batch that count (B,) bool: all but those that are `repeated`; None where all do."""
    repeated = batch.get("repeated")
    return None if repeated is None else ~repeated
