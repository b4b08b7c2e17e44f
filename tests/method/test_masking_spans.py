"""Span, random and inverse-block masks: exact counts, whole spans, and statistics close to the official generators'.

Tolerances are the sampling error of 2,000 official rows and 500 of ours, plus what equal counts and whole spans change.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable

import pytest
import torch
from golden_case import GOLDEN
from torch import Tensor

from d2v_lightning.method.masking import (
    drawn_span_count,
    inverse_block_mask,
    num_span_masked,
    random_mask,
    span_mask,
)

STATISTICS = json.loads((GOLDEN / "mask_statistics_spans.json").read_text())["stats"]
FINE_TUNING = json.loads((GOLDEN / "mask_statistics_ctc.json").read_text())["stats"]
SPEECH = "compute_mask_indices d2v1 audio prob .65 len 10 T={} batch=1"
SPEECH_2 = "compute_block_mask_1d d2v2 audio (data loader) prob .5 adjust .05 len 5 T={} clones=8"
TEXT = "MaskTokensDataset d2v1 text base: prob .35 span 4 L={}"


def rows(draw: Callable[[torch.Generator], Tensor], count: int = 500) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.stack([draw(generator) for _ in range(count)])


def run_lengths(masks: Tensor) -> list[list[int]]:
    return [[len(list(run)) for hidden, run in itertools.groupby(row.tolist()) if hidden] for row in masks]


@pytest.mark.parametrize("length", [100, 300, 780])
def test_speech_hides_the_official_number_in_official_spans(length: int) -> None:
    official = STATISTICS[SPEECH.format(length)]
    count = num_span_masked(length, 0.65, 10)
    assert count / length == pytest.approx(official["mean_masked_fraction"], abs=0.006)
    masks = rows(lambda generator: span_mask(length, count, 10, generator))
    assert (masks.sum(dim=1) == count).all()
    runs = run_lengths(masks)
    assert all(sum(run < 10 for run in row) <= 1 for row in runs), "one span at most is cut"
    assert sum(map(len, runs)) / len(runs) == pytest.approx(official["mean_runs_per_row"], rel=0.12)
    first = masks[:, :12].float().mean(dim=0)
    torch.testing.assert_close(first, torch.tensor(official["p_masked_first_positions"]), atol=0.08, rtol=0.0)
    assert masks[:, 12:-12].float().mean() == pytest.approx(official["p_masked_middle"], abs=0.02)


@pytest.mark.parametrize("name", [*list(FINE_TUNING)[2::2], list(FINE_TUNING)[-1]])
def test_fine_tuning_hides_what_the_released_batches_hide(name: str) -> None:
    official = FINE_TUNING[name]
    lengths = official.get("lengths", [official["length"]] * official["rows"])
    generator = torch.Generator().manual_seed(0)
    shape = (official["mask_prob"], official["mask_length"], official["min_masks"], generator)
    batches = 120
    drawn = torch.tensor(
        [min(drawn_span_count(length, *shape) for length in lengths) for _ in range(batches)], dtype=torch.float32
    )
    # Three standard errors of the difference of two means, over 2,000 official batches and 120 of ours.
    error = official["std_count"] * (1 / batches + 1 / official["batches"]) ** 0.5
    assert float(drawn.mean()) == pytest.approx(official["mean_count"], abs=3 * error + 1e-3)
    assert float(drawn.std()) == pytest.approx(official["std_count"], rel=0.25, abs=1e-3)


@pytest.mark.parametrize("length", [100, 300, 780])
def test_speech_2_hides_half_in_whole_spans(length: int) -> None:
    official = STATISTICS[SPEECH_2.format(length)]
    count = official["min_masked_in_row"]
    assert count == official["max_masked_in_row"] == length // 2
    masks = rows(lambda generator: span_mask(length, count, 5, generator, overhang=2))
    assert (masks.sum(dim=1) == count).all()
    inner = run_lengths(masks[:, 5:-5])
    assert all(sum(run < 5 for run in row[1:-1]) <= 1 for row in inner), (
        "the official rows break their spans, ours do not"
    )
    first = masks[:, :12].float().mean(dim=0)
    torch.testing.assert_close(first, torch.tensor(official["p_masked_first_positions"]), atol=0.09, rtol=0.0)


@pytest.mark.parametrize("length", [128, 512])
def test_text_spans_of_four(length: int) -> None:
    official = STATISTICS[TEXT.format(length)]
    count = num_span_masked(length, 0.35, 4, open_end=True)
    assert count == pytest.approx(official["mean_masked_fraction"] * length, abs=0.6)
    masks = rows(lambda generator: span_mask(length, count, 4, generator, open_end=True))
    # Four standard errors of a share of 500 rows: the beginning is hidden less, the end is not.
    for part, places in (("first", slice(0, 12)), ("last", slice(-12, None))):
        expected = torch.tensor(official[f"p_masked_{part}_positions"])
        torch.testing.assert_close(masks[:, places].float().mean(dim=0), expected, atol=0.09, rtol=0.0)
    runs = run_lengths(masks)
    assert sum(map(len, runs)) / len(runs) == pytest.approx(official["mean_runs_per_row"], rel=0.08)
    assert sum(map(sum, runs)) / sum(map(len, runs)) == pytest.approx(official["run_length_mean"], rel=0.08)


@pytest.mark.parametrize("length", [128, 512])
def test_random_masks(length: int) -> None:
    official = STATISTICS[f"random_masking d2v2 text base: prob .48 len 1 L={length}"]
    masks = rows(lambda generator: random_mask(length, official["min_masked_in_row"], generator))
    runs = run_lengths(masks)
    assert sum(map(len, runs)) / len(runs) == pytest.approx(official["mean_runs_per_row"], rel=0.02)
    assert masks.float().mean(dim=0).std() < 0.04


def test_inverse_blocks() -> None:
    official = STATISTICS["compute_block_mask_2d d2v2 image base: L=196 prob .8 len 3 adjust .07 inverse clones=16"]
    masks = rows(lambda generator: inverse_block_mask((14, 14), 157, 3, generator), 1000)
    assert (masks.sum(dim=1) == official["min_masked_in_row"]).all()
    grid = masks.float().reshape(-1, 14, 14)
    # 1,000 rows: .013 of sampling error a patch, and .035 at the edges, where the official count is met by single patches.
    torch.testing.assert_close(grid.mean(dim=0), torch.tensor(official["p_masked_grid"]), atol=0.06, rtol=0.0)
    across, down = (grid[:, :, 1:] == grid[:, :, :-1]).float().mean(), (grid[:, 1:] == grid[:, :-1]).float().mean()
    assert (across + down) / 2 == pytest.approx(official["neighbour_pair_same_fraction"], abs=0.025)
    for side, hidden in ((14, 147), (16, 192)):
        assert int(inverse_block_mask((side, side), hidden).sum()) == hidden


@pytest.mark.parametrize("length", range(2, 40))
def test_any_count_of_any_length_is_met(length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    for count in range(1, length):
        for mask_length, overhang in ((1, 0), (4, 2), (10, 0), (10, 5)):
            assert int(span_mask(length, count, mask_length, generator, overhang).sum()) == count
            assert int(span_mask(length, count, mask_length, generator, open_end=True).sum()) == count
    assert 1 <= num_span_masked(length, 0.65, 10) < length
    assert 1 <= num_span_masked(length, 0.65, 1) < length
    assert 1 <= num_span_masked(length, 0.65, 4, open_end=True) < length


def test_the_same_generator_draws_the_same_mask() -> None:
    for draw in (
        lambda g: span_mask(50, 20, 5, g),
        lambda g: random_mask(50, 20, g),
        lambda g: inverse_block_mask((7, 7), 30, 3, g),
    ):
        first, again = (draw(torch.Generator().manual_seed(7)) for _ in range(2))
        assert torch.equal(first, again)


def test_wrong_arguments_are_named() -> None:
    for draw, message in (
        (lambda: span_mask(5, 5, 2), r"num_masked 5: permitted is 1\.\.4 of 5 tokens"),
        (lambda: span_mask(5, 2, 0), "mask_length 0"),
        (lambda: random_mask(5, 0), "num_masked 0"),
        (lambda: inverse_block_mask((2, 2), 4), r"num_masked 4: permitted is 1\.\.3 in a 2x2 grid"),
        (lambda: num_span_masked(1, 0.5, 2), "length 1"),
        (lambda: num_span_masked(9, 1.5, 2), r"mask_prob 1\.5"),
    ):
        with pytest.raises(ValueError, match=message):
            draw()
