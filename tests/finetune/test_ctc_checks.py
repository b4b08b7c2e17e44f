"""What usually goes wrong with CTC is said at the first batch and after a silent validation, and nothing else is."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from d2v_lightning.finetune import ctc_checks
from d2v_lightning.finetune.ctc_checks import HypothesisStats, check_first_batch
from d2v_lightning.types import Batch

CONVS = [(8, 10, 5), (8, 8, 8), (8, 8, 8)]  # a frame each 20 ms


def batch_of(letters: list[int], seconds: float = 1.0, twice: bool = False, padded: bool = False) -> Batch:
    """Clips of mean 0 and variance 1, with so many letters each; `twice` the same letter again and again."""
    samples = int(16000 * seconds)
    inputs = torch.randn(len(letters), samples, generator=torch.Generator().manual_seed(0))
    most = max(letters)
    labels = torch.full((len(letters), most), 2) if twice else torch.arange(most).repeat(len(letters), 1) % 9 + 2
    batch: Batch = {"inputs": inputs, "labels": labels, "label_lengths": torch.tensor(letters)}
    if padded:
        batch["padding_mask"] = torch.arange(samples).repeat(len(letters), 1) >= 3 * samples // 4
        batch["inputs"][batch["padding_mask"]] = 0.0
    return batch


def complaints(batch: Batch, normalised: bool = True) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_first_batch(batch, CONVS, 16000, normalised)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("padded", [False, True])
def test_recordings_that_are_not_normalised_are_noticed(padded: bool) -> None:
    batch = batch_of([14, 12, 14], padded=padded)
    assert complaints(batch) == []
    batch["inputs"] = 0.05 * batch["inputs"] + 0.01
    (said,) = complaints(batch)
    assert "a standard deviation of 0.05" in said
    assert complaints(batch, normalised=False) == []


def test_transcripts_that_have_no_room_are_counted_with_the_blanks_between_equal_letters() -> None:
    """A second has 49 frames: room for 25 different letters, and for no more than 25 equal ones."""
    assert complaints(batch_of([25, 25], twice=True)) == []
    (said,) = complaints(batch_of([25, 26, 26], twice=True))
    assert said.startswith("2 of the first 3 transcripts are longer than their recordings have frames")


@pytest.mark.parametrize(("letters", "wrong"), [(1, True), (2, False), (28, False), (29, True)])
def test_a_speaking_rate_that_nobody_has_is_said(letters: int, wrong: bool) -> None:
    said = complaints(batch_of([letters] * 3))
    assert [f"have {letters}.0 letters a second" in line for line in said] == [True] * wrong


def test_a_few_hypotheses_are_shown_and_only_a_silent_model_is_complained_of(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(ctc_checks, "rank_zero_info", shown.append)
    trainer: Any = SimpleNamespace(is_global_zero=True, loggers=[])
    blank, letter = torch.tensor([0.0, -9.0]), torch.tensor([-9.0, 0.0])
    heard = HypothesisStats()
    speaks = torch.stack([torch.stack([blank] * 3 + [letter])] * 2)  # (2, 4, 2), the last frame of each a letter
    heard.add(["A", "B"], ["A", ""], speaks, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        heard.show(trainer, "val")
    assert shown == ["said:  A\nheard: A", "said:  B\nheard: (nothing)"]
    assert (heard.frames, heard.blanks) == (8, 6)

    heard = HypothesisStats()
    padding = torch.tensor([[False, False, False, True]] * 2)  # what is said in the padding does not count
    heard.add(["A", "B"], ["", ""], speaks, padding)
    heard.add(["C", "D"], ["", ""], speaks, padding)
    with pytest.warns(UserWarning, match=r"100\.0 % of all frames are decoded as blank"):
        heard.show(trainer, "val")
    assert len(heard.pairs) == 3
