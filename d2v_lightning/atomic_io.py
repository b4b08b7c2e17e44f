"""AtomicCheckpointIO: a checkpoint is there as a whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from d2v_lightning.atomic import atomic_write


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes next to the old file and renames: whatever kills the process, a whole file stays.

    Lightning itself writes to the system's temporary folder and moves the file. Where that is another file system, which is
    usual, the move is a copy onto the old checkpoint, and a kill in the middle of it loses both. The CLI uses this plugin
    always; in a script: `Trainer(plugins=[AtomicCheckpointIO()])`.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if "://" in str(path):  # object stores write whole objects
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with atomic_write(path) as unfinished, open(unfinished, "wb") as file:
            torch.save(checkpoint, file)  # to a file of Python's: a full disk is then an OSError that says so
