"""Two processes (gloo) for tests, forked from a server that has imported everything: seconds, not half a minute each."""

from __future__ import annotations

import multiprocessing
from typing import Any

import pytorch_lightning as pl


class TwoRanks(pl.strategies.DDPStrategy):
    """DDP whose processes come from a fork server. Each takes weights of its own: the model reaches both in shared memory,
    which Lightning undoes for spawned processes alone. The server keeps the environment in which the first of them began, so
    that a seed set since does not reach them: compare nothing random across starts."""

    def __init__(self, **options: Any) -> None:
        multiprocessing.set_forkserver_preload(["torch", "pytorch_lightning", "d2v_lightning", "datamodules"])
        super().__init__(start_method="forkserver", **options)

    def setup(self, trainer: pl.Trainer) -> None:
        assert self.model is not None
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            tensor.data = tensor.data.clone()
        super().setup(trainer)
