"""A loader that stops and goes on in the middle of an epoch, exactly."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from d2v_lightning.callbacks.exact_resume import ExactResume
from d2v_lightning.flavour import pl
from d2v_lightning.support.lines import listed
from d2v_lightning.types import Batch
from datamodules.shared.samplers import EpochBatchSampler, world
from datamodules.shared.workers import SafeLoader


def resume_exactly(trainer: pl.Trainer | None) -> None:
    """To be called in a datamodule's `setup`: adds `ExactResume` where the module does not bring it along."""
    callbacks: list[pl.Callback] = [] if trainer is None else trainer.callbacks  # type: ignore[attr-defined]
    if trainer is not None and not any(isinstance(callback, ExactResume) for callback in callbacks):
        trainer.callbacks = [*callbacks, ExactResume()]  # type: ignore[attr-defined]


class ResumableLoader:
    """Batches of an `EpochBatchSampler`, with a state: (epoch, number of batches handed out).

    A resumed run gets exactly the batches that the uninterrupted one would have got. Everything random about a sample
    must follow from its key for that. The number of workers may change in between. In a loop of your own call
    `loader.sampler.set_epoch(epoch)` before each epoch; Lightning does.

    The loader keeps its own place, because a checkpoint's epoch may be another. Lightning counts an epoch as done when a
    run stops in it by `max_steps`, and takes one batch too many where it stops at the very end. So training batches form
    one endless sequence, epoch after epoch, and what one iteration leaves over (`limit_train_batches`) the next one
    begins with. Loaders for evaluation begin at the beginning each time.

    This is not a `DataLoader` so that Lightning neither swaps its sampler nor builds it anew: the sampler shards over
    ranks by itself. It has a length, so Lightning fetches no batch ahead, and batches handed out are batches trained
    on.

    Batches may carry "unreadable", a list of "name: reason", which is taken out. One warning at the end of the epoch, or
    where the run stops, counts and names what was not warned of before. Every rank does so for its own share.

    Args:
        dataset: takes (epoch, index) keys.
        sampler: decides what is in which batch.
        collate_fn: list of samples -> batch.
        num_workers: worker processes, kept alive over epochs; 0 loads in this process.
        pin_memory: copies batches to page-locked memory, for faster transfer to a GPU.
        endless: iterate over epoch after epoch until the caller has enough, as Lightning does, which goes by the
            length. Otherwise an iteration is one epoch, or what a resumed one lacks.
        loader: reads the batches, in place of one made of the arguments above.

    Attributes:
        overfits: every iteration begins with the first batch of epoch 0, see `Trainer.overfit_batches`.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        sampler: EpochBatchSampler,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
        endless: bool = False,
        loader: DataLoader[Any] | None = None,
    ) -> None:
        self.endless = endless
        # Not named dataset: `overfit_batches` would make Lightning build a `DataLoader` of it.
        self.data, self.sampler = dataset, sampler
        self.overfits = False
        # Lightning asks anything with a sampler for a batch_sampler too.
        self.batch_sampler = None
        # A DataLoader draws a seed for its workers at every start; a generator of its own keeps the model's draws
        # apart.
        if loader is None:
            loader = SafeLoader(
                dataset,
                batch_sampler=sampler,
                collate_fn=collate_fn,
                num_workers=num_workers,
                pin_memory=pin_memory,
                persistent_workers=num_workers > 0,
                generator=torch.Generator(),
            )
        self._loader = loader
        self._consumed = 0
        self._epoch = 0
        self._resume_at: tuple[int, int] | None = None
        self._warned: set[str] = set()

    def __len__(self) -> int:
        """Batches in a whole epoch, also where the next iteration only finishes one."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        # A generator: nothing happens before the first batch is asked for. Lightning iterates once to see that it can,
        # and again before it has said which epoch it is.
        left = self._take_place()
        unreadable: list[str] = []
        try:
            while left > 0:
                for batch in self._batches():
                    unreadable += batch.pop("unreadable", [])
                    if self.sampler.shuffle:  # who stands in for another counts in training
                        batch.pop("repeated", None)
                    self._consumed += 1
                    left -= 1
                    if self._consumed == len(self):
                        self._warn_of(unreadable)
                    if batch:  # in evaluation nothing of it may have been readable
                        yield batch
                    if left == 0:
                        return
                self._begin(self._epoch + 1)
        finally:
            self._warn_of(unreadable)

    def _batches(self) -> Iterator[Any]:
        """Batches from `sampler.start` to the end of the epoch."""
        for number, batch in enumerate(self._loader, self.sampler.start):
            if "inputs" in batch and self.sampler.repeats(number):
                batch["repeated"] = torch.ones(len(batch["inputs"]), dtype=torch.bool)
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Epoch, batches handed out of it, and what these numbers count."""
        if self._resume_at is not None:
            epoch, consumed = self._resume_at
        else:
            epoch, consumed = self._epoch, self._consumed
        return {"epoch": epoch, "consumed": consumed, **self._layout()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The next iteration, if it is of the same epoch, goes on after the batches handed out."""
        self._resume_at = state["epoch"], state["consumed"]
        layout = self._layout()
        if changed := [f"{name} {state[name]} -> {now}" for name, now in layout.items() if state.get(name, now) != now]:
            warnings.warn(
                f"resuming after {state['consumed']} batches of epoch {state['epoch']} with {', '.join(changed)}: the"
                " rest of this epoch is not what the interrupted run would have seen; an exact resume needs the same",
                stacklevel=2,
            )

    def _take_place(self) -> float:
        """Chooses epoch and first batch of an iteration that begins, and returns how many batches it has."""
        whole = len(self)
        resumed, self._resume_at = self._resume_at, None
        if not self.sampler.shuffle or self.overfits:
            self._begin(0 if self.overfits else self.sampler.epoch)
            return whole
        if resumed is not None:
            self._begin(*resumed)
        elif 0 < self._consumed < whole:
            self._begin(self._epoch, self._consumed)
        else:
            self._begin(self.sampler.epoch)
        if self._consumed >= whole:
            self._begin(self._epoch + 1)
        if self.endless and whole:
            return math.inf
        return whole - self._consumed if resumed is not None else whole

    def _begin(self, epoch: int, consumed: int = 0) -> None:
        self.sampler.trainer_ahead += self.sampler.epoch - epoch
        self.sampler.start = self._consumed = consumed
        self._epoch = epoch

    def _layout(self) -> dict[str, int]:
        sampler = self.sampler
        return {
            "num_samples": sampler.num_samples,
            "batch_size": sampler.batch_size,
            "world_size": world()[1],
            "seed": sampler.seed,
        }

    def _warn_of(self, unreadable: list[str]) -> None:
        new = [entry for entry in dict.fromkeys(unreadable) if entry not in self._warned]
        self._warned.update(new)
        unreadable.clear()
        if new:
            warnings.warn(
                f"{len(new)} unreadable file(s) left out, in training another sample takes the place: {listed(new)}",
                stacklevel=2,
            )

    # Lightning shuts a loader's workers down at the end of a run through this attribute.
    @property
    def _iterator(self) -> Any:
        return self._loader._iterator

    @_iterator.setter
    def _iterator(self, iterator: Any) -> None:
        self._loader._iterator = iterator
