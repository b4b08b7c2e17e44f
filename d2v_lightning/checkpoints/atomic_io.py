"""AtomicCheckpointIO: a checkpoint is there as a whole or not at all, and a damaged one is never used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from d2v_lightning.flavour import fabric
from d2v_lightning.support.atomic import atomic_write
from d2v_lightning.support.tensor_files import read_tensors


class AtomicCheckpointIO(fabric.plugins.io.torch_io.TorchCheckpointIO):
    """Writes next to the old file and renames: whatever kills the process, a whole file stays.

    Lightning itself writes to the system's temporary folder and moves the file. That is usually another file system, so the
    move is a copy onto the old checkpoint. A kill in the middle of it loses both. The CLI always uses this plugin; in a
    script: `Trainer(plugins=[AtomicCheckpointIO()])`.

    Files are read as tensors and plain data, see `read_tensors`, whatever `weights_only` is: nothing in them is executed.
    """

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None) -> Any:
        if "://" in str(path):
            return super().load_checkpoint(path, map_location, weights_only=True)
        return read_tensors(path, map_location)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if "://" in str(path):  # object stores write whole objects
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with atomic_write(path) as unfinished, open(unfinished, "wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # the archive could not be ended: say why its writing was broken off
                first = error.__context__
                raise first if isinstance(first, (OSError, KeyboardInterrupt, SystemExit)) else error from None
