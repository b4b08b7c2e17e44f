"""Clips of like length together, in batches of a budget of samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from d2v_lightning.support.errors import UserError
from datamodules.shared.samplers import EpochBatchSampler, Key, derived_seed, world


class BudgetBatchSampler(EpochBatchSampler):
    """Batches whose longest clip times their number of clips stays within a budget, padding included.

    Clips are sorted by length (equal ones in an order of the seed) and cut into batches once. An epoch is a permutation of
    these batches. fairseq sorts alike, but cuts anew each epoch (`rebuild_batches` of its tasks/audio_pretraining.py), with
    equal lengths in another order. In pre-training all clips of `max_seconds` or more are equal.

    Every rank gets the same number: in training the rest sits out this epoch, in evaluation every clip comes, and where a
    rank would be one batch short the last batch comes twice: see `repeats`.

    Args:
        lengths: of the clips in samples, cropped ones as long as their crop.
        budget: samples in a batch.
        seed: of the order.
        shuffle: training; otherwise evaluation.
        at_least: clips in a batch; smaller batches are left out.
        at_most: clips in a batch.
        by_length: sort by length; otherwise batches are cut from one random order of the seed, as fairseq does for GLUE.

    Attributes:
        left_out: numbers of the clips that are in no batch.

    Raises:
        ValueError: the longest clip does not fit into the budget, or no batch has `at_least` clips.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        budget: int,
        seed: int = 0,
        shuffle: bool = True,
        at_least: int = 1,
        at_most: int | None = None,
        by_length: bool = True,
    ) -> None:
        super().__init__(len(lengths), budget, seed, shuffle)
        longest = max(lengths)
        if longest > budget:
            raise UserError(
                f"budget {budget} is smaller than the longest clip, {longest}: raise it, or leave the clip out"
            )
        generator = torch.Generator().manual_seed(derived_seed("ties", seed))
        ties = torch.randperm(len(lengths), generator=generator).tolist()
        self.batches: list[list[int]] = [[]]
        width = 0  # of the last batch
        for index in sorted(range(len(lengths)), key=lambda index: (lengths[index] if by_length else 0, ties[index])):
            width, batch = max(width, lengths[index]), self.batches[-1]
            if (len(batch) + 1) * width > budget or len(batch) == at_most:
                self.batches.append([])
                width = lengths[index]
            self.batches[-1].append(index)
        # A clip that is left over alone gets company: statistics over a batch need two.
        if len(self.batches) > 1 and len(self.batches[-1]) == 1 and len(self.batches[-2]) > 2 and 2 * longest <= budget:
            self.batches[-1].insert(0, self.batches[-2].pop())
        self.left_out = [index for batch in self.batches if len(batch) < at_least for index in batch]
        self.batches = [batch for batch in self.batches if len(batch) >= at_least]
        if not self.batches:
            raise UserError(
                f"no batch of {budget} samples holds {at_least} clips, which the norm 'position' needs: raise batch_samples, "
                "or lower max_seconds"
            )
        padded = sum(len(batch) * max(lengths[index] for index in batch) for batch in self.batches)
        self.padding_ratio = 1 - sum(lengths[index] for batch in self.batches for index in batch) / padded

    def __len__(self) -> int:
        _, world_size = world()
        whole = len(self.batches) // world_size
        return whole if self.shuffle else -(-len(self.batches) // world_size)

    def repeats(self, number: int) -> bool:
        rank, world_size = world()
        return not self.shuffle and number * world_size + rank >= len(self.batches)

    def _shuffled(self) -> Iterator[list[Key]]:
        rank, world_size = world()
        generator = torch.Generator().manual_seed(derived_seed("order", self.seed, self.epoch))
        order = torch.randperm(len(self.batches), generator=generator).tolist()
        for number in range(len(self)):
            yield [(self.epoch, index) for index in self.batches[order[number * world_size + rank]]]

    def _in_order(self) -> Iterator[list[Key]]:
        rank, world_size = world()
        for number in range(len(self)):
            place = min(number * world_size + rank, len(self.batches) - 1)
            yield [(0, index) for index in self.batches[place]]
