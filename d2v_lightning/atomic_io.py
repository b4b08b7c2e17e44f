"""AtomicCheckpointIO: a checkpoint is there as a whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO


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
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        # One name for all attempts: what a killed process has left over is written over, not collected.
        unfinished = target.with_name(f".{target.name}.unfinished")
        with open(unfinished, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, target)
