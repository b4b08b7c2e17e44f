"""Batches of several modalities in turn: whose turn it is follows from the step, and each batch says whose it is."""

from __future__ import annotations

from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from datamodules import ImageDataModule, MultimodalDataModule
from datamodules.multimodal import NamedLoader, TurnsLoader, spread_out
from datamodules.shared.attached import attached_model
from datamodules.shared.loader import ResumableLoader
from datamodules.shared.samplers import EpochBatchSampler


class Keys(Dataset[dict[str, Any]]):
    """A sample says which it is, and of which epoch."""

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        return {"inputs": torch.tensor(key)}


def turns(accumulated: int = 1) -> TurnsLoader:
    """Six batches an epoch of "a", two of "b"; two turns of "a", then one of "b"."""
    loaders = {
        name: ResumableLoader(Keys(), EpochBatchSampler(count, 2), lambda rows: {"inputs": [r["inputs"] for r in rows]})
        for name, count in (("a", 12), ("b", 4))
    }
    return TurnsLoader(loaders, {"a": 2, "b": 1}, accumulated)


def said(batches: Any) -> list[tuple[str, list[list[int]]]]:
    return [(batch["modality"], [row.tolist() for row in batch["inputs"]]) for batch in batches]


@pytest.mark.parametrize("accumulated", [1, 2])
def test_an_epoch_ends_when_all_have_been_gone_through_and_what_is_short_begins_again(accumulated: int) -> None:
    loader = turns(accumulated)
    epoch = said(islice(loader, len(loader)))
    assert [name for name, _ in epoch[: 3 * accumulated]] == [name for name in "aba" for _ in range(accumulated)]
    keys = {name: [tuple(key) for other, rows in epoch if other == name for key in rows] for name in "ab"}
    assert len(set(keys["a"])) == len(keys["a"]) >= 12
    assert {key for key in keys["a"] if key[0] == 0} == {(0, index) for index in range(12)}
    assert {key for key in keys["b"] if key[0] == 0} == {(0, index) for index in range(4)}
    assert any(epoch_number == 1 for epoch_number, _ in keys["b"])


@pytest.mark.parametrize("stop", [1, 2, 3, 7])
def test_what_is_stopped_anywhere_goes_on_with_the_batches_it_would_have_had(stop: int) -> None:
    whole = said(islice(turns(), 15))
    first = turns()
    assert said(islice(first, stop)) == whole[:stop]
    state = first.state_dict()
    second = turns()
    second.load_state_dict(state)
    assert second.state_dict() == state
    assert said(islice(second, 15 - stop)) == whole[stop:]


def test_batches_of_evaluation_have_their_modality() -> None:
    loader = NamedLoader("a", [{"inputs": 1}, {"inputs": 2}])
    assert len(loader) == 2
    assert list(loader) == [{"inputs": 1, "modality": "a"}, {"inputs": 2, "modality": "a"}]


def test_a_loader_that_cannot_be_resumed_is_refused() -> None:
    with pytest.raises(ValueError, match="the training loader of a is a list: a ResumableLoader is needed"):
        TurnsLoader({"a": []}, {"a": 1})


def test_a_datamodule_reads_off_its_own_modality() -> None:
    data = {"one": ImageDataModule(), "two": ImageDataModule()}
    MultimodalDataModule(data)  # type: ignore[arg-type]
    for part in data.values():
        part.trainer = SimpleNamespace(lightning_module=SimpleNamespace(modalities={"one": 1, "two": 2}))  # type: ignore[assignment]
    assert [attached_model(part) for part in data.values()] == [1, 2]


def test_turns_are_spread_over_the_round() -> None:
    assert spread_out({"a": 2, "b": 1}) == ["a", "b", "a"]
    assert spread_out({"a": 1, "b": 1}) == ["a", "b"]
    long = spread_out({"a": 5, "b": 2, "c": 1})
    assert [long.count(name) for name in "abc"] == [5, 2, 1]
    assert "aaa" not in "".join(long)
