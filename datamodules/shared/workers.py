"""Loading processes that fail in a way which can be read: what is refused in one arrives as it was raised."""

from __future__ import annotations

import multiprocessing.queues
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate, default_convert, get_worker_info

from d2v_lightning.flavour import rank_zero_warn
from d2v_lightning.support.errors import UserError

SHARED = "/dev/shm"  # where Linux keeps what processes share
LEAST_SHARED = 2**16  # bytes; locks and queues take a few pages for each process
_FOR_PEOPLE = (UserError, OSError, MemoryError)


class SafeLoader(DataLoader[Any]):
    """A `DataLoader` for which nothing is lost of an error in a loading process, and which never waits for a lost batch.

    torch joins what a process raised and its traceback to one long text. Here errors that are for people (`UserError`, those
    of the system and of memory) travel as values. The main process raises them with the same type and
    message. Where a batch cannot be handed over, torch prints the reason and waits for ever. Here a full shared memory is
    such an error too, and anything else ends the loading process.

    Args:
        dataset: of samples by key, or a stream.
        arguments: those of `DataLoader`, by name.
    """

    def __init__(self, dataset: Dataset[Any], **arguments: Any) -> None:
        if not isinstance(dataset, (_Keyed, _Streamed)):  # Lightning builds loaders anew from their own attributes
            batched = arguments.get("batch_size", 1) is not None or arguments.get("batch_sampler") is not None
            collate = arguments.get("collate_fn") or (default_collate if batched else default_convert)
            arguments["worker_init_fn"] = _Begin(arguments.get("worker_init_fn"))
            if isinstance(dataset, IterableDataset):
                dataset = _Streamed(dataset)
                arguments["collate_fn"] = _Collator(collate)
            else:
                dataset = _Keyed(dataset, collate)
                arguments["collate_fn"] = _as_it_is
        super().__init__(dataset, **arguments)
        self._looked = False

    def _get_iterator(self) -> Any:
        context = self.multiprocessing_context or multiprocessing
        if isinstance(self.worker_init_fn, _Begin) and context.get_start_method() != "forkserver":
            self.worker_init_fn.parent = os.getpid()
        batches = super()._get_iterator()
        for process in getattr(batches, "_workers", ()):
            process._popen.terminate = process._popen.kill  # one that hangs does not hear SIGTERM, see `_Begin`
        return batches

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch's says which class of its own
        if self.num_workers:
            _refuse_full_memory()
        batches = super().__iter__()
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (ConnectionError, EOFError) as error:  # it has ended, and what it had announced is not to be had
                raise RuntimeError("DataLoader worker ended before its batch was taken over") from error
            if isinstance(batch, _Refusal):
                raise batch.error from _InWorkerError(batch.where)
            if self.num_workers and not self._looked:
                self._looked = True
                self._look_at_shared_memory(batch)
            yield batch

    def _look_at_shared_memory(self, batch: Any) -> None:
        room = _room()
        wanted = _bytes(batch) * ((self.prefetch_factor or 1) * self.num_workers + 1)
        if room is not None and wanted > (there := room.f_blocks * room.f_frsize):
            rank_zero_warn(
                f"{self.num_workers} loading processes may share {wanted / 2**20:,.1f} MB of batches, {SHARED} holds "
                f"{there / 2**20:,.1f} MB: raise that limit (Docker: --shm-size=8g), or lower data.num_workers"
            )


def _room() -> os.statvfs_result | None:
    return os.statvfs(SHARED) if os.path.isdir(SHARED) else None


def _refuse_full_memory() -> None:
    room = _room()
    if room is not None and room.f_bavail * room.f_frsize < LEAST_SHARED:
        raise UserError(
            f"{SHARED}, where loading processes share batches, has {room.f_bavail * room.f_frsize / 2**10:.0f} kB free: "
            "raise its limit (Docker: --shm-size=8g), or set data.num_workers to 0"
        )


class _InWorkerError(Exception):
    """The traceback of a loading process, as text."""

    def __str__(self) -> str:
        return f"in a loading process\n{self.args[0]}"


class _Refusal:
    """An error on its way from a loading process."""

    def __init__(self, error: Exception) -> None:
        self.where = traceback.format_exc()
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # an error class of some library that does not travel
            error = UserError(str(error))
        self.error = error


class _Keyed(Dataset[Any]):
    """Fetches and collates a batch, in one place where its refusal can be caught."""

    def __init__(self, dataset: Any, collate: Callable[[Any], Any]) -> None:
        self.dataset, self.collate = dataset, collate

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Any) -> Any:  # without automatic batches
        return self._caught(lambda: self.collate(self.dataset[key]))

    def __getitems__(self, keys: list[Any]) -> Any:
        if hasattr(self.dataset, "__getitems__"):
            return self._caught(lambda: self.collate(self.dataset.__getitems__(keys)))
        return self._caught(lambda: self.collate([self.dataset[key] for key in keys]))

    @staticmethod
    def _caught(fetch: Callable[[], Any]) -> Any:
        try:
            return _shared(fetch())
        except _FOR_PEOPLE as error:
            return _refused(error)


class _Streamed(IterableDataset[Any]):
    """A stream whose last sample may be a refusal."""

    def __init__(self, dataset: IterableDataset[Any]) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self.dataset
        except _FOR_PEOPLE as error:
            yield _refused(error)


class _Collator:
    """Of a stream: a batch with a refusal in it is one."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: Any) -> Any:
        some = samples if isinstance(samples, list) else [samples]
        refused = next((sample for sample in some if isinstance(sample, _Refusal)), None)
        if refused is not None:
            return refused
        try:
            return _shared(self.collate(samples))
        except _FOR_PEOPLE as error:
            return _refused(error)


def _refused(error: Exception) -> _Refusal:
    """The error as a value; in the main process it is raised where it is."""
    if get_worker_info() is None:
        raise error
    return _Refusal(error)


def _shared(batch: Any) -> Any:
    """Move a batch to the shared memory here, where an error can be caught; afterwards torch would do it in a thread."""
    if get_worker_info() is not None:
        try:
            for tensor in _tensors(batch):
                tensor.share_memory_()
        except RuntimeError as error:
            reason = str(error).rpartition(": ")[2]
            size = _bytes(batch) / 2**20
            raise UserError(
                f"a loading process cannot share a batch of {size:,.1f} MB ({reason}): raise the limit of {SHARED} (Docker: "
                "--shm-size=8g) or of open files (ulimit -n), or set data.num_workers to 0"
            ) from error
    return batch


def _as_it_is(batch: Any) -> Any:
    return batch


class _Begin:
    """What a loading process does first.

    Ctrl-C, a closed terminal and many schedulers signal all processes. The one that trains has a step to finish, for which it
    may need batches, so it alone listens. Loading processes end when it says so, or when it is gone.
    """

    def __init__(self, first: Callable[[int], None] | None) -> None:
        self.first = first
        self.parent: int | None = None  # process that trains, where it starts this one itself

    def __call__(self, worker: int) -> None:
        if self.parent is not None and os.getppid() != self.parent:
            os._exit(0)  # it is gone already, and torch's watch, which asks from now on for a change, would see none
        for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_IGN)
        sys.excepthook = _say_unless_left
        multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end)  # type: ignore[attr-defined]
        if self.first is not None:
            self.first(worker)


def _end(error: Exception, batch: Any) -> None:
    """Called where a batch could not be handed over: without it the main process would wait for ever."""
    os._exit(1)


def _say_unless_left(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Called where a thread that hands over memory fails: the main process may have gone in the middle of it."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    for part in batch.values() if isinstance(batch, dict) else batch if isinstance(batch, (list, tuple)) else ():
        yield from _tensors(part)


def _bytes(batch: Any) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in _tensors(batch))
