"""OnlineProbe: what do the features know about labels that training never sees?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from d2v_lightning.callbacks.objective_of import objective_of
from d2v_lightning.callbacks.without_side_effects import without_side_effects
from d2v_lightning.configurable import Configurable
from d2v_lightning.flavour import pl
from d2v_lightning.method.probing import Part, knn_accuracy, linear_accuracy, pooled_features
from d2v_lightning.support.errors import UserError
from d2v_lightning.types import as_batch, require

Loader = Iterable[Any]
_NEEDS_LABELS = "OnlineProbe needs loaders of {'inputs', 'labels'} or (inputs, labels)"


class OnlineProbe(Configurable, pl.Callback):
    """k-NN and linear probe of frozen features, every so often during pre-training.

    Features are the last block's output, averaged over tokens, of clean inputs in eval mode. They come from
    `datamodule.probe_dataloaders()`, a (train, test) pair of loaders of {"inputs", "labels"} or (inputs, labels). In a script
    without such a datamodule set `probe.loaders = (train, test)`. Accuracies are logged as `probe/knn_teacher`,
    `probe/linear_teacher` and so on, at the number of optimiser steps taken. Rank zero computes, the others wait. Gradients,
    modes, random states and the order of the training data are not touched: losses are bit for bit those of a run without it.

    Args:
        every_n_epochs: probe at the end of every so many epochs; None for never.
        every_n_steps: probe after every so many optimiser steps; None for never.
        parts: whose features.
        k: neighbours that vote.
        modality: in a run of several, the one to probe, on `datamodule.datamodules[modality].probe_dataloaders()`. Its name
            then follows `probe/`.
        linear: fit the linear probe too: about a second per thousand samples at width 192, more for wide models.

    Raises:
        ValueError: neither interval is given, or one is not positive, or a part does not exist.
    """

    loaders: tuple[Loader, Loader] | None = None

    def __init__(
        self,
        every_n_epochs: int | None = 1,
        every_n_steps: int | None = None,
        parts: Sequence[Part] = ("teacher", "student"),
        k: int = 20,
        linear: bool = True,
        modality: str | None = None,
    ) -> None:
        intervals = [interval for interval in (every_n_epochs, every_n_steps) if interval is not None]
        if not intervals or min(intervals) < 1:
            raise UserError(
                f"every_n_epochs is {every_n_epochs}, every_n_steps is {every_n_steps}: set one of them to 1 or more"
            )
        unknown = [part for part in parts if part not in ("teacher", "student")]
        if unknown or not parts:
            raise UserError(f"parts is {list(parts)}: choose from 'teacher' and 'student'")
        self.every_n_epochs, self.every_n_steps = every_n_epochs, every_n_steps
        self.parts, self.k, self.linear = tuple(parts), k, linear
        self.modality = modality
        self._last_step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last_step = trainer.global_step
        objective_of(pl_module, self.modality, "OnlineProbe")
        if self.loaders is None:
            datamodule: Any = getattr(trainer, "datamodule", None)
            if self.modality is not None and datamodule is not None:
                datamodule = datamodule.datamodules[self.modality]
            if datamodule is None or not hasattr(datamodule, "probe_dataloaders"):
                raise UserError(
                    "OnlineProbe has nothing to probe on: use a datamodule with probe_dataloaders(), or set "
                    f"probe.loaders = (train, test). {_NEEDS_LABELS}"
                )
            # Asked now, so that data without labels is refused before the first epoch, not after it.
            self.loaders = datamodule.probe_dataloaders()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step != self._last_step and self.every_n_steps is not None and step % self.every_n_steps == 0:
            self.probe(trainer, pl_module)
        self._last_step = step

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.every_n_epochs is not None and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self.probe(trainer, pl_module)

    def probe(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Probe now and log; call it on all ranks."""
        assert self.loaders is not None, "the run has not started"
        if trainer.is_global_zero:
            accuracies: dict[str, float] = {}
            objective = objective_of(pl_module, self.modality, "OnlineProbe")
            prefix = "probe/" if self.modality is None else f"probe/{self.modality}/"
            with without_side_effects(trainer, pl_module):
                train, train_labels = self._features(objective, pl_module.device, self.loaders[0])
                test, test_labels = self._features(objective, pl_module.device, self.loaders[1])
                for part in self.parts:
                    data = train[part], train_labels, test[part], test_labels
                    accuracies[f"{prefix}knn_{part}"] = knn_accuracy(*data, k=self.k)
                    if self.linear:
                        accuracies[f"{prefix}linear_{part}"] = linear_accuracy(*data)
            for logger in trainer.loggers:
                logger.log_metrics(accuracies, step=trainer.global_step)
            pl_module.log_dict(accuracies, logger=False, batch_size=1, rank_zero_only=True)
        trainer.strategy.barrier("OnlineProbe")

    def _features(self, objective: Any, device: torch.device, loader: Loader) -> tuple[dict[Part, Tensor], Tensor]:
        """Features (n, D) of each part and labels (n,), on the CPU."""
        features: dict[Part, list[Tensor]] = {part: [] for part in self.parts}
        labels: list[Tensor] = []
        for given in loader:
            batch = as_batch(given)
            require(batch, "inputs", "labels", remedy=_NEEDS_LABELS)
            inputs = batch["inputs"].to(device)
            padding_mask = batch.get("padding_mask")
            padding_mask = None if padding_mask is None else padding_mask.to(device)
            for part in self.parts:
                features[part].append(pooled_features(objective, inputs, padding_mask, part).float().cpu())
            labels.append(batch["labels"].cpu())
        if not labels:
            raise UserError("OnlineProbe got no samples: its loaders are empty")
        return {part: torch.cat(chunks) for part, chunks in features.items()}, torch.cat(labels)
