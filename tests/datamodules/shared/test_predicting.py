"""What predict reads: each file once, in batches that a stopped run does not change, and one warning for all that is odd."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from datamodules.shared import predicting
from datamodules.shared.predicting import PlaceBatches, PredictLoader, done_before, files_to_predict


def places(done: Any, rank: int, world_size: int, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    monkeypatch.setattr(predicting, "world", lambda: (rank, world_size))
    sampler = PlaceBatches(np.array(done), batch_size=3)
    batches = [[place for _, place in batch] for batch in sampler]
    assert len(batches) == len(sampler)
    return batches


def test_files_that_are_given_twice_come_once(tmp_path: Path) -> None:
    for name in ("b.wav", "a.wav", "c.txt"):
        (tmp_path / name).touch()
    found = files_to_predict([str(tmp_path / "b.wav"), str(tmp_path)], (".wav",), "recording")
    assert [Path(path).name for path in found] == ["b.wav", "a.wav"]
    with pytest.raises(ValueError, match="predict_files is empty: give recordings or folders of them"):
        files_to_predict([], (".wav",), "recording")


def test_a_run_that_goes_on_computes_the_batches_of_an_unbroken_one(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = places([False] * 8, 0, 1, monkeypatch)
    assert whole == [[0, 1, 2], [3, 4, 5], [6, 7]]
    done = [True, False, True, True, True, True, False, False]
    assert places(done, 0, 1, monkeypatch) == [[1], [6, 7]], "places that shared a batch still do"
    shares = [places([False] * 8, rank, 2, monkeypatch) for rank in range(2)]
    assert sorted(place for share in shares for batch in share for place in batch) == list(range(8))
    assert places([True] * 8, 0, 1, monkeypatch) == [[5, 6, 7]], "a Trainer needs something to do"
    assert places([False, False], 1, 2, monkeypatch) == [[0, 1]], "and on every rank"


def test_what_is_done_is_asked_of_the_one_callback_that_knows() -> None:
    asked: list[Any] = []

    def go_on(*arguments: Any) -> Any:
        asked.append(arguments)
        return np.array([True, False])

    writer = SimpleNamespace(go_on=go_on)
    data: Any = SimpleNamespace(trainer=SimpleNamespace(callbacks=[object(), writer]))
    assert done_before(data, ["a", "b"], {"width": 2}, 2).tolist() == [True, False]
    assert asked == [(data.trainer, ["a", "b"], {"width": 2})]
    without: Any = SimpleNamespace(trainer=None)
    assert done_before(without, ["a", "b"], {}, 2).tolist() == [False, False]


def test_batches_without_inputs_are_left_out_and_all_names_are_in_one_warning() -> None:
    loader: Any = [
        {"inputs": 1, "unreadable": ["a: torn"], "cut": ["c:4"]},
        {"unreadable": ["b: gone"]},
        {"inputs": 2},
    ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert list(PredictLoader(loader)) == [{"inputs": 1}, {"inputs": 2}]
    assert [str(entry.message) for entry in caught] == [
        "2 unreadable file(s) left out: a: torn; b: gone",
        "1 line(s) longer than the model reads, and cut: c:4",
    ]
