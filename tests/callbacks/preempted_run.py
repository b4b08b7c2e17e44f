"""Run by test_preemption: a run over several epochs, with accumulation, that says how far it is and waits a little.

    python preempted_run.py FOLDER [CHECKPOINT]

Losses go to FOLDER/losses.txt, one line for each micro-batch.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from d2v_lightning.flavour import pl

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from tiny import loader, tiny_model, trainer

from d2v_lightning.callbacks import Preemption

STEPS = 12


class Report(pl.Callback):
    """Writes losses, and says where the run is so that a signal can come in the middle of it."""

    def __init__(self, folder: Path, slow: bool) -> None:
        self.path, self.slow = folder / "losses.txt", slow

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        with open(self.path, "a") as file:
            print(f"{trainer.global_step} {float(outputs['loss']).hex()}", file=file)
        if self.slow:
            print(f"micro-batch {batch_idx}", flush=True)
            time.sleep(0.1)


def run(folder: Path, slow: bool = False, checkpoint: str | None = None) -> pl.LightningModule:
    """5 micro-batches an epoch, 2 a step: windows of 2, 2, 1."""
    folder.mkdir(parents=True, exist_ok=True)
    model = tiny_model()
    keeper = pl.callbacks.ModelCheckpoint(
        folder / "checkpoints", save_last=True, every_n_train_steps=5, save_on_exception=True
    )
    runner = trainer([Preemption(), Report(folder, slow), keeper], STEPS, folder, accumulate_grad_batches=2)
    runner.fit(model, loader(40, num_workers=2 * slow), ckpt_path=checkpoint)
    return model


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), slow=True, checkpoint=sys.argv[2] if len(sys.argv) > 2 else None)
