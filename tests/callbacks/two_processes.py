"""Run by test_collapse_monitor: two processes (gloo) whose batches differ in length, and one that reads the joint batch.

Rank 0 has 3 samples of 6 tokens, rank 1 has 3 samples of 9 tokens, two of them padded. Then rank 1 alone gets a SIGTERM.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from d2v_lightning.flavour import pl

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch import Tensor
from torch.multiprocessing import ProcessExitedException
from torch.utils.data import DataLoader

from d2v_lightning.callbacks import CollapseMonitor, Preemption
from d2v_lightning.callbacks.collapse_statistics import measure
from d2v_lightning.method.positions import hidden_positions

LENGTHS = {0: [6, 6, 6], 1: [9, 7, 4]}


def batch_of(lengths: list[int], seeds: list[int]) -> dict[str, Tensor]:
    """Samples that follow from their seed alone, padded to the longest."""
    longest = max(lengths)
    inputs = torch.zeros(len(lengths), longest, 8)
    mask = torch.zeros(len(lengths), 1, longest, dtype=torch.bool)
    for row, (length, seed) in enumerate(zip(lengths, seeds, strict=True)):
        inputs[row, :length] = torch.randn(length, 8, generator=torch.Generator().manual_seed(seed))
        mask[row, :, seed % 2 : length : 2] = True
    padding_mask = torch.arange(longest)[None] >= torch.tensor(lengths)[:, None]
    return {"inputs": inputs, "mask": mask, "padding_mask": padding_mask}


class Fake(pl.LightningModule):
    """Representations that are plain functions of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(8))
        self.encoder = SimpleNamespace(features=lambda inputs, padding_mask: (inputs, padding_mask))
        self.averaged_layers, self.make_targets = [3], SimpleNamespace(norm_each=())

    def targets(self, batch: Any) -> Tensor:
        positions = torch.sin(torch.arange(batch["inputs"].shape[1]))[:, None]
        return batch["inputs"] + positions

    def teacher_layer_results(self, batch: Any) -> list[Tensor]:
        return [3.0 * self.targets(batch)]

    def predictions(self, batch: Any) -> tuple[Tensor, Tensor]:
        hidden = hidden_positions(batch["mask"], batch["padding_mask"])
        length = batch["mask"].shape[2]
        return 0.5 * self.targets(batch).flatten(0, 1)[hidden // length * length + hidden % length], hidden

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.trainer.global_rank == 1 and self.trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return (self.weight * batch["inputs"]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def train_dataloader(self) -> DataLoader[Any]:
        rank = self.trainer.global_rank
        batch = batch_of(LENGTHS[rank], [10 * rank + row for row in range(3)])
        return DataLoader([batch] * 20, batch_size=None)  # type: ignore[arg-type]


class Record(pl.Callback):
    """Writes what this rank's monitor has read, when the preempted run is saved."""

    def __init__(self, folder: Path, monitor: CollapseMonitor) -> None:
        self.folder, self.monitor = folder, monitor

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        report = {"saved at": trainer.global_step, "reading": self.monitor.reading}
        (self.folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(report))


def main(folder: Path) -> None:
    """Both runs."""
    alone = SimpleNamespace(strategy=SimpleNamespace(reduce=lambda x, reduce_op: x))
    seeds = [0, 1, 2, 10, 11, 12]
    joint = measure(alone, Fake(), batch_of(LENGTHS[0] + LENGTHS[1], seeds))  # type: ignore[arg-type]
    assert joint is not None
    (folder / "joint.json").write_text(json.dumps({**joint, "verdict": 0.0}))
    monitor = CollapseMonitor(every_n_steps=3)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp_fork",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        callbacks=[monitor, Preemption(agree_every_n_steps=4), Record(folder, monitor)],
    )
    try:
        trainer.fit(Fake())
    except ProcessExitedException as exception:
        (folder / "exit").write_text(str(exception.exit_code))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
