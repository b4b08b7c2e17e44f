"""MultimodalDataModule: the batches of several datamodules in turn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from d2v_lightning.configurable import Configurable
from d2v_lightning.flavour import pl
from d2v_lightning.recipes import FromRecipe
from d2v_lightning.support.errors import UserError
from d2v_lightning.types import Batch
from datamodules.shared.loader import ResumableLoader


class MultimodalDataModule(FromRecipe, Configurable, pl.LightningDataModule):
    """Datamodules for pre-training, one a modality, whose optimiser steps come in turn.

    Batches are those of the datamodules with "modality", the name. All batches that are accumulated for one optimiser step
    are of the same modality, so that its gradient is that of one large batch. Whose turn it is follows from the number of
    the step alone, on all ranks alike.

    An epoch is over when every datamodule has been gone through at least once; those that are through earlier go on with
    their next epoch. A run that is stopped anywhere goes on with the batches that it would have had.

    Args:
        datamodules: by the names that the model's `modalities` have. What they read off a model is read off that modality.
        turns: optimiser steps of each modality in a round, spread over the round as evenly as possible; by default one each.

    Raises:
        ValueError: there is no datamodule, `turns` names others, or a datamodule sets the accumulation for itself.
    """

    def __init__(self, datamodules: dict[str, pl.LightningDataModule], turns: dict[str, int] | None = None) -> None:
        super().__init__()
        turns = dict.fromkeys(datamodules, 1) if turns is None else turns
        if not datamodules or set(turns) != set(datamodules) or min(turns.values()) < 1:
            raise UserError(
                f"turns is {turns} for datamodules {', '.join(datamodules) or 'none'}: give each a number of 1 or more"
            )
        setting = [name for name, data in datamodules.items() if getattr(data, "effective_batch", None) is not None]
        if setting:
            raise UserError(
                f"effective_batch of {setting[0]}: several modalities share one accumulation, so set it to null and "
                "trainer.accumulate_grad_batches to the batches of one modality in a step"
            )
        self.datamodules, self.turns = datamodules, turns
        for name, data in datamodules.items():
            data.modality = name  # type: ignore[attr-defined]  # see `attached_model`

    def prepare_data(self) -> None:
        for data in self.datamodules.values():
            data.prepare_data()

    def setup(self, stage: str) -> None:
        """Sets up all of them.

        Raises:
            ValueError: the model has other modalities.
        """
        modalities = getattr(getattr(self.trainer, "lightning_module", None), "modalities", self.datamodules)
        if set(modalities) != set(self.datamodules):
            raise UserError(
                f"the model has modalities {', '.join(modalities)}, the data {', '.join(self.datamodules)}: make them equal"
            )
        for data in self.datamodules.values():
            data.trainer = self.trainer
            data.setup(stage)

    def train_dataloader(self) -> TurnsLoader:
        """Batches in turn, restartable in the middle of an epoch."""
        loaders = {name: data.train_dataloader() for name, data in self.datamodules.items()}
        accumulated = self.trainer.accumulate_grad_batches if self.trainer is not None else 1
        return TurnsLoader(loaders, self.turns, accumulated)

    def val_dataloader(self) -> list[NamedLoader]:
        """One loader for each modality that has validation data."""
        loaders = ((name, data.val_dataloader()) for name, data in self.datamodules.items())
        return [NamedLoader(name, loader) for name, loader in loaders if not isinstance(loader, list)]

    def test_dataloader(self) -> list[NamedLoader]:
        """One loader a modality."""
        return [NamedLoader(name, data.test_dataloader()) for name, data in self.datamodules.items()]


class TurnsLoader:
    """Training batches of several loaders in turn, epoch after epoch, until the caller has enough; with a state.

    Args:
        loaders: `ResumableLoader`s by modality.
        turns: see `MultimodalDataModule`.
        accumulated: batches of a turn.

    Raises:
        ValueError: a loader cannot be resumed.
    """

    def __init__(self, loaders: dict[str, Any], turns: dict[str, int], accumulated: int = 1) -> None:
        for name, loader in loaders.items():
            if not isinstance(loader, ResumableLoader):
                raise UserError(
                    f"the training loader of {name} is a {type(loader).__name__}: a ResumableLoader is needed"
                )
            loader.endless = True
        self.loaders, self.accumulated = loaders, accumulated
        self.round = spread_out(turns)
        rounds = max(-(-len(loader) // (accumulated * turns[name])) for name, loader in loaders.items())
        self._length = accumulated * len(self.round) * rounds
        self._consumed = 0
        self.overfits = False
        self._iterators: dict[str, Iterator[Batch]] = {}

    def __len__(self) -> int:
        """Batches of an epoch, also where the next iteration only finishes one."""
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        # The loaders' own iterators go on from epoch to epoch, and so does the place in the round.
        if self.overfits:
            self._consumed, self._iterators = 0, {}
            for loader in self.loaders.values():
                loader.overfits = True
        while True:
            name = self.round[self._consumed // self.accumulated % len(self.round)]
            if name not in self._iterators:
                self._iterators[name] = iter(self.loaders[name])
            batch = next(self._iterators[name])
            self._consumed += 1
            batch["modality"] = name
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Batches handed out, and the state of every loader."""
        states = {name: loader.state_dict() for name, loader in self.loaders.items()}
        return {"consumed": self._consumed, "loaders": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next iteration goes on after the batches handed out."""
        self._consumed, self._iterators = state["consumed"], {}
        for name, loader in self.loaders.items():
            loader.load_state_dict(state["loaders"][name])


class NamedLoader:
    """Batches of a loader for evaluation, with their modality."""

    def __init__(self, modality: str, loader: Any) -> None:
        self.modality, self.loader = modality, loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader:
            batch["modality"] = self.modality
            yield batch


def spread_out(turns: dict[str, int]) -> list[str]:
    """Names of one round, each as often as its turns, as evenly as possible: {"a": 2, "b": 1} -> ["a", "b", "a"]."""
    round_: list[str] = []
    owed = dict.fromkeys(turns, 0)
    for _ in range(sum(turns.values())):
        owed = {name: owed[name] + turns[name] for name in turns}
        chosen = max(owed, key=lambda name: owed[name])
        owed[chosen] -= sum(turns.values())
        round_.append(chosen)
    return round_
