"""Which sample is read when: orders and seeds that are pure functions of (seed, epoch, sample)."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed
from torch.utils.data import Sampler

from d2v_lightning.support.errors import UserError

Key = tuple[int, int]
"""(epoch, index): together with the seed it decides everything random about one reading of one sample."""


def derived_seed(purpose: str, *numbers: int) -> int:
    """A 63-bit seed that depends on every argument, the same on every machine and in every process.

    Args:
        purpose: keeps the streams of one sample apart, say "mask" and "augmentation".
        numbers: usually seed, epoch and index.
    """
    text = f"{purpose}:{':'.join(map(str, numbers))}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's, Python's and NumPy's global generators start from `seed` inside, and are as before outside.

    Transforms draw from the global generators. Without this, their draws would depend on the number of workers.
    They would also shift the model's own (dropout) where the loading runs in the training process. Only torch's CPU
    generator is touched.
    """
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


def world() -> tuple[int, int]:
    """(rank, world size) of the running process group; (0, 1) where there is none."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class EpochBatchSampler(Sampler[list[Key]]):
    """Batches of (epoch, index) keys: this rank's share of an order that depends on (seed, epoch) alone.

    Rank and world size are asked for when it is iterated, so it can be built before the processes meet. Every rank gets
    the same number of batches.

    Training (`shuffle`): a fresh permutation per epoch, cut into global batches of `batch_size` x world size; the rest
    that fills no global batch sits out this epoch, so within an epoch no sample comes twice.

    Evaluation (not `shuffle`): the natural order, rank r gets samples r, r + world size, ...; every sample comes, and
    the keys say epoch 0 always, so evaluation repeats itself. Batches are of one size, give or take one sample, so that no
    sample is left alone in the last. Where a rank would be one batch short, one sample comes twice: see `repeats`.

    Args:
        num_samples: size of the data set.
        batch_size: samples per batch and rank.
        seed: of the permutations.
        shuffle: see above.

    Attributes:
        start: number of batches that the next iteration leaves out.
        trainer_ahead: how many epochs the caller of `set_epoch` is ahead of the data (see `ResumableLoader`).

    Raises:
        ValueError: there are no samples, or the batch size is not positive.
    """

    def __init__(self, num_samples: int, batch_size: int, seed: int = 0, shuffle: bool = True) -> None:
        if num_samples < 1:
            raise UserError(f"num_samples {num_samples}: permitted is 1 or more")
        if batch_size < 1:
            raise UserError(f"batch_size {batch_size}: permitted is 1 or more")
        self.num_samples, self.batch_size, self.seed, self.shuffle = num_samples, batch_size, seed, shuffle
        self.start = 0
        self.trainer_ahead = 0
        self._trainer_epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the permutation of the next iteration; Lightning calls it."""
        self._trainer_epoch = epoch

    @property
    def epoch(self) -> int:
        """The epoch in the keys."""
        return self._trainer_epoch - self.trainer_ahead

    def __len__(self) -> int:
        """Batches per epoch and rank, whatever `start` is."""
        _, world_size = world()
        if self.shuffle:
            return self.num_samples // (self.batch_size * world_size)
        samples_per_rank = -(-self.num_samples // world_size)
        return -(-samples_per_rank // self.batch_size)

    def repeats(self, number: int) -> bool:
        """Whether this rank's batch of that number is only there because other ranks have one: its samples come elsewhere."""
        rank, world_size = world()
        mine = len(range(rank, self.num_samples, world_size))
        return not self.shuffle and mine * number // len(self) == mine * (number + 1) // len(self)

    def __iter__(self) -> Iterator[list[Key]]:
        batches = self._shuffled() if self.shuffle else self._in_order()
        for number, batch in enumerate(batches):
            if number >= self.start:
                yield batch

    def _shuffled(self) -> Iterator[list[Key]]:
        rank, world_size = world()
        generator = torch.Generator().manual_seed(derived_seed("order", self.seed, self.epoch))
        order = torch.randperm(self.num_samples, generator=generator)
        for number in range(len(self)):
            first = (number * world_size + rank) * self.batch_size
            yield [(self.epoch, index) for index in order[first : first + self.batch_size].tolist()]

    def _in_order(self) -> Iterator[list[Key]]:
        rank, world_size = world()
        mine = range(rank, self.num_samples, world_size)
        for number in range(len(self)):
            batch = mine[len(mine) * number // len(self) : len(mine) * (number + 1) // len(self)]
            yield [(0, index) for index in batch] or [(0, self.num_samples - 1)]
