"""What predict reads: batches that do not depend on what a stopped run has done, and names of what cannot be read."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler

from d2v_lightning.flavour import pl
from d2v_lightning.support.errors import UserError
from d2v_lightning.support.lines import listed
from d2v_lightning.types import Batch
from datamodules.shared.files import files_of
from datamodules.shared.samplers import Key, world

Done = NDArray[np.bool_]


def files_to_predict(given: str | Sequence[str], endings: Sequence[str], what: str) -> list[str]:
    """The files of `predict_files`, each once; arguments as those of `files_of`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: nothing is given, or see `files_of`.
    """
    if not given:
        raise UserError(f"predict_files is empty: give {what}s or folders of them")
    found = (path for one in ([given] if isinstance(given, str) else given) for path in files_of(one, endings, what))
    return list(dict.fromkeys(found))


def done_before(data: pl.LightningDataModule, names: Iterable[str], settings: Any, count: int) -> Done:
    """Which inputs a stopped run has predictions for, (count,) bool.

    Args:
        data: whose Trainer may have a callback with `go_on`, such as `PredictionWriter`.
        names: of the inputs, paths where they are files; else names that say what the inputs are.
        settings: plain data that the predictions depend on beside the network and the files.
        count: of the names.
    """
    writers = [one for one in getattr(data.trainer, "callbacks", ()) if hasattr(one, "go_on")]
    done = writers[0].go_on(data.trainer, names, settings) if len(writers) == 1 else None
    return np.zeros(count, bool) if done is None else done


class PlaceBatches(Sampler[list[Key]]):
    """The places 0 to `len(done)` in batches of `batch_size`, without those that are done; every rank has its share.

    Which places share a batch follows from their number alone, so that a run that goes on computes as an unbroken one does.
    Where all are done, the last batch comes again: a Trainer with nothing to do would not write the file.
    """

    def __init__(self, done: Done, batch_size: int) -> None:
        chunks = (np.arange(start, min(start + batch_size, len(done))) for start in range(0, len(done), batch_size))
        open_ones = [places for chunk in chunks if len(places := chunk[~done[chunk]])]
        self.batches = open_ones or [np.arange(len(done))[-batch_size:]]

    def __len__(self) -> int:
        rank, world_size = world()
        return max(1, len(self.batches[rank::world_size]))

    def __iter__(self) -> Iterator[list[Key]]:
        rank, world_size = world()
        for places in self.batches[rank::world_size] or self.batches[-1:]:
            yield [(0, place) for place in places.tolist()]


class PredictLoader:
    """Batches of a `DataLoader`, once. A batch without inputs is left out.

    A batch's "unreadable", a list of "name: reason", is taken out, and one warning at the end counts and names all of them.
    The same is done with "cut", the names of what is longer than the model reads.

    This is not a `DataLoader` so that Lightning leaves its sampler alone.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader

    def __len__(self) -> int:
        """Batches; a TypeError where they cannot be counted before."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        said = {"unreadable": "unreadable file(s) left out", "cut": "line(s) longer than the model reads, and cut"}
        named: dict[str, list[str]] = {kind: [] for kind in said}
        try:
            for batch in self._loader:
                for kind, names in named.items():
                    names += batch.pop(kind, [])
                if "inputs" in batch:
                    yield batch
        finally:
            for kind, names in named.items():
                if names:
                    warnings.warn(f"{len(names)} {said[kind]}: {listed(names)}", stacklevel=2)
