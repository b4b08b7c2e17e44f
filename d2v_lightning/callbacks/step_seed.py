"""StepSeed: dropout and its kin become a pure function of (seed, step, rank), so that a resumed run repeats them."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from d2v_lightning.flavour import pl
from d2v_lightning.support.errors import UserError


class StepSeed(pl.Callback):
    """Re-seed torch's, Python's and NumPy's global generators before every training micro-batch.

    Lightning does not restore random states on resume, and a saved state would be that of rank 0 only. Deriving them
    needs nothing saved but one seed: that of `seed_everything`, or else the one torch started with.
    """

    def __init__(self) -> None:
        self.seed: int | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        seed = state_dict["seed"]
        if seed is not None and (not isinstance(seed, int) or seed < 0):
            raise UserError(
                f"the checkpoint's state of StepSeed has the seed {str(seed)[:60]!r}: a whole number is expected"
            )
        self.seed = seed

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.seed is None:
            self.seed = trainer.strategy.broadcast(torch.initial_seed() % 2**32)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        entropy = [self.seed or 0, trainer.current_epoch, batch_idx, trainer.global_rank]
        seeds = np.random.SeedSequence(entropy).generate_state(2)
        torch.manual_seed(int(seeds[0]))
        np.random.seed(int(seeds[1]))
        random.seed(int(seeds[1]))
