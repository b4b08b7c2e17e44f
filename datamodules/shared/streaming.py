"""Samples from a stream, for data sets that do not fit on the disk: order, shares of the workers, exact resume."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from d2v_lightning.support.errors import UserError, reason_of
from datamodules.shared.files import FolderGoneError
from datamodules.shared.loader import ResumableLoader
from datamodules.shared.samplers import EpochBatchSampler, derived_seed, world
from datamodules.shared.workers import SafeLoader

LOOK_AHEAD = 32


class Stream(IterableDataset[dict[str, Any] | None]):
    """Samples of one epoch of a Hugging Face stream, for one worker of one rank.

    In training a pass over the stream is shuffled (its files, then its rows in a buffer) by (seed, epoch, pass), and
    passes follow each other without end. A row that cannot be read is listed in the sample's "unreadable". The next
    one that can be read takes its place, or at the end of an evaluation the last one that could. That one is "repeated": it
    comes in its own place too. "index" counts the samples of the epoch over all ranks: a stream has no other numbers.

    Args:
        stream: a `datasets.IterableDataset`.
        column: of pictures or recordings, as {bytes, path}.
        batch_size: samples a batch; a worker makes whole batches.
        seed: of order and augmentation.
        shuffle: training; otherwise one pass in order.
        buffer: rows in the shuffle buffer.

    Attributes:
        epoch: of the next iteration.
        skip: batches at the beginning of the epoch that are read but not decoded.
        share: (rank, world size); a worker process cannot ask for it.
    """

    unreadable: tuple[type[Exception], ...] = ()

    def __init__(self, stream: Any, column: str, batch_size: int, seed: int, shuffle: bool, buffer: int) -> None:
        self.stream, self.column, self.batch_size = stream, column, batch_size
        self.seed, self.shuffle, self.buffer = seed, shuffle, buffer
        self.epoch, self.skip, self.share = 0, 0, (0, 1)

    def most_workers(self, world_size: int) -> int:
        """Worker processes that get something to read: files are shared out whole, and evaluation is read in order."""
        if not self.shuffle:
            return 1
        files: int = self.stream.num_shards
        return files // world_size if files % world_size == 0 else files

    def __iter__(self) -> Iterator[dict[str, Any] | None]:
        rank, world_size = self.share
        worker = get_worker_info()
        mine, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        ahead: deque[dict[str, Any]] = deque()
        self._readable: dict[str, Any] | None = None
        rows = self._rows(rank, world_size)
        for place in count():
            ahead.extend(islice(rows, LOOK_AHEAD + 1 - len(ahead)))
            if not ahead:
                return
            batch = place // self.batch_size * workers + mine
            if batch < self.skip:
                yield None
            else:
                index = (batch * world_size + rank) * self.batch_size + place % self.batch_size
                if not self.shuffle:  # the row's own number, whatever the ranks are
                    index = place * world_size + rank
                yield self._sample(index, ahead)
            ahead.popleft()

    def _rows(self, rank: int, world_size: int) -> Iterator[dict[str, Any]]:
        """Undecoded rows of this worker."""
        from datasets.distributed import split_dataset_by_node

        if not self.shuffle:
            yield from islice(self.stream, rank, None, world_size)
            return
        for number in count():
            seed = derived_seed("stream", self.seed, self.epoch, number) % 2**32
            shuffled = self.stream.shuffle(seed=seed, buffer_size=self.buffer)
            row = None
            for row in split_dataset_by_node(shuffled, rank, world_size) if world_size > 1 else shuffled:
                yield row
            if row is None:  # passes without rows would follow each other for ever
                raise UserError(f"the stream has no rows for device {rank} of {world_size}: check the data set")

    def _sample(self, index: int, ahead: deque[dict[str, Any]]) -> dict[str, Any]:
        unreadable: list[str] = []
        place = f"sample {index} of epoch {self.epoch}" if self.shuffle else f"row {index}"
        for row in (*ahead, *([] if self._readable is None else [self._readable])):
            cell = row[self.column]
            name = str((cell.get("path") if isinstance(cell, dict) else None) or place)
            try:
                read = self.read(row)
            except FolderGoneError:
                raise
            except self.unreadable as error:
                unreadable.append(f"{name}: {reason_of(error)}")
                continue
            sample = self.finished(read, row, name, index)
            self._readable = None if self.shuffle else row
            # Rows after the first are listed in their own turn.
            sample |= {"unreadable": unreadable[:1], "repeated": bool(unreadable)}
            return {**sample, "index": index, "key": (self.epoch, index)}
        raise UserError(
            f"{len(unreadable)} rows in a row cannot be read, the first is {unreadable[0]}: check the data set"
        )

    def read(self, row: dict[str, Any]) -> Any:
        """Decodes a row, or raises one of `unreadable`."""
        raise NotImplementedError(f"{type(self).__name__} does not say how a row is read: define read")

    def finished(self, read: Any, row: dict[str, Any], name: str, index: int) -> dict[str, Any]:
        """What of a sample comes from what was read."""
        raise NotImplementedError(f"{type(self).__name__} does not say what a sample is: define finished")


class StreamingLoader(ResumableLoader):
    """A `ResumableLoader` of a stream.

    A resume in mid-epoch is exact, with the same number of workers and ranks. The stream is read again from the
    beginning of the epoch, without decoding what was seen. This takes the time of the reading. (`datasets` can jump, but
    loses what was in its shuffle buffer.)

    An epoch is `samples_per_epoch` samples. Choose it no smaller than a pass where the stream is one file: each epoch
    begins a new pass.

    Args:
        dataset: the stream.
        samples_per_epoch: over all ranks.
        collate_fn: list of samples -> batch.
        num_workers: processes; no more than have files to read are started.
        pin_memory: see `ResumableLoader`.
        endless: see `ResumableLoader`.

    Raises:
        ValueError: in evaluation, there are fewer samples than ranks. On reading, a pass over the stream has no rows.
    """

    def __init__(
        self,
        dataset: Stream,
        samples_per_epoch: int,
        collate_fn: Callable[[list[Any]], Any],
        num_workers: int = 0,
        pin_memory: bool = False,
        endless: bool = False,
    ) -> None:
        if not dataset.shuffle and samples_per_epoch < world()[1]:
            raise UserError(f"{samples_per_epoch} rows cannot be shared out to {world()[1]} devices: use fewer devices")
        self.stream = dataset
        self.num_workers = min(num_workers, dataset.most_workers(world()[1]))
        sampler = EpochBatchSampler(samples_per_epoch, dataset.batch_size, dataset.seed, dataset.shuffle)
        loader = SafeLoader(
            dataset,
            batch_size=dataset.batch_size,
            collate_fn=_SkippingCollator(collate_fn),
            num_workers=self.num_workers,
            pin_memory=pin_memory,
            generator=torch.Generator(),
        )
        super().__init__(dataset, sampler, collate_fn, pin_memory=pin_memory, endless=endless, loader=loader)

    def _batches(self) -> Iterator[Any]:
        stream, sampler = self.stream, self.sampler
        stream.epoch, stream.skip, stream.share = sampler.epoch if sampler.shuffle else 0, sampler.start, world()
        batch: Any = None
        done = sampler.start
        for batch in islice(self._loader, done, len(self)):
            yield batch
            done += 1
        # Every rank has as many batches. One with a row less may be a batch short.
        if not sampler.shuffle and batch is not None and done < len(self):
            yield {**batch, "repeated": torch.ones(len(batch["inputs"]), dtype=torch.bool)}

    def _layout(self) -> dict[str, int]:
        return {**super()._layout(), "num_workers": max(1, self.num_workers)}


class _SkippingCollator:
    """Batches that are only there to be skipped stay empty."""

    def __init__(self, collate_fn: Callable[[list[Any]], Any]) -> None:
        self.collate_fn = collate_fn

    def __call__(self, samples: list[Any]) -> Any:
        return {} if samples[0] is None else self.collate_fn(samples)


def count_rows(stream: Any) -> int:
    """Rows of a stream: what its description says, or else it is read once."""
    splits = stream.info.splits or {}
    split = splits.get(str(stream.split))
    return (split.num_examples if split is not None else 0) or sum(1 for _ in stream)
