"""Batches of texts: exact counts of hidden tokens, special ones as released, BERT's 80/10/10, pure functions of the key."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from d2v_lightning.method.masking import num_span_masked
from datamodules import TextCollator, TextMaskCollator
from datamodules.text.masks import num_text_masked
from datamodules.text.vocabulary import Vocabulary

STATISTICS = json.loads((Path(__file__).parents[2] / "golden" / "mask_statistics_spans.json").read_text())["stats"]


SIZE, FIRST, PAD, LAST, MASK = 100, 0, 1, 2, 99


SPECIAL = torch.zeros(SIZE, dtype=torch.bool)


SPECIAL[[FIRST, PAD, LAST, 3, MASK]] = True


VOCABULARY = Vocabulary(FIRST, LAST, PAD, MASK, SPECIAL, torch.arange(SIZE) % 3 == 0)


def text(length: int, seed: int = 0, separators: int = 2) -> Tensor:
    """Ids that begin with `<s>` and end with `</s>`, with `separators` of these inside."""
    ids = torch.randint(4, 99, (length,), generator=torch.Generator().manual_seed(seed))
    ids[0] = FIRST
    ids[torch.linspace(length - 1, length // 3, separators + 1).long()] = LAST
    return ids


def samples(*lengths: int, epoch: int = 0, **options: Any) -> list[dict[str, Any]]:
    return [
        {"inputs": text(length, index, **options), "index": index, "key": (epoch, index)}
        for index, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("length", [128, 512])
def test_spans_of_a_collator_lie_as_the_official_ones(length: int) -> None:
    official = STATISTICS[f"MaskTokensDataset d2v1 text base: prob .35 span 4 L={length}"]
    mask = TextMaskCollator(VOCABULARY)(samples(*[length] * 300))["mask"][:, 0]
    # Half a token of rounding, and the sampling error of 2,000 official rows.
    assert mask.sum() / len(mask) == pytest.approx(official["mean_masked_fraction"] * length, abs=0.6)
    runs = [len(list(run)) for row in mask.tolist() for hidden, run in itertools.groupby(row) if hidden]
    assert len(runs) / len(mask) == pytest.approx(official["mean_runs_per_row"], rel=0.08)
    assert sum(runs) / len(runs) == pytest.approx(official["run_length_mean"], rel=0.08)
    assert mask[:, 8:-8].float().mean() == pytest.approx(official["p_masked_middle"], abs=0.02)
    # Four standard errors of a share of 300 rows: `<s>` is hidden in 9 %, `</s>` in 31 %, as any token at such a place.
    for part, places in (("first", slice(0, 12)), ("last", slice(-12, None))):
        expected = torch.tensor(official[f"p_masked_{part}_positions"])
        torch.testing.assert_close(mask[:, places].float().mean(dim=0), expected, atol=0.11, rtol=0.0)


def test_2_hides_the_token_that_begins_a_text_as_often_as_any() -> None:
    official = STATISTICS["random_masking d2v2 text base: prob .48 len 1 L=128"]
    batch = TextMaskCollator(VOCABULARY, 0.48, 1, num_masks=8)(samples(*[128] * 50, separators=0))
    share = batch["mask"].float().mean(dim=(0, 1))
    for place, expected in (
        (0, official["p_masked_first_positions"][0]),
        (-1, official["p_masked_last_positions"][-1]),
    ):
        assert float(share[place]) == pytest.approx(expected, abs=0.1)  # four standard errors of 400 rows and 2,000


@pytest.mark.parametrize("whole_words", [False, True])
@pytest.mark.parametrize("mask_special", [False, True])
@pytest.mark.parametrize(("prob", "length", "num_masks"), [(0.35, 4, 1), (0.15, 1, 1), (0.48, 1, 8), (0.5, 3, 2)])
def test_equal_counts_and_special_tokens_are_spared_where_asked(
    prob: float, length: int, num_masks: int, whole_words: bool, mask_special: bool
) -> None:
    collator = TextMaskCollator(VOCABULARY, prob, length, num_masks, whole_words=whole_words, mask_special=mask_special)
    batch = collator([{"inputs": text(64, seed, seed % 5), "key": (0, seed)} for seed in range(10)])
    mask = batch["mask"]
    assert "padding_mask" not in batch
    assert mask.shape == (10, num_masks, 64)
    assert (mask.sum(dim=-1) == num_text_masked(64, prob, length, mask_special)).all()
    assert bool(SPECIAL[batch["inputs"][:, None].expand_as(mask)[mask]].any()) == mask_special
    assert torch.equal(batch["hidden"], mask.flatten().nonzero()[:, 0])
    assert "corrupted" not in batch


def test_padded_rows_hide_their_own_share_and_no_padding() -> None:
    batch = TextMaskCollator(VOCABULARY)(samples(64, 40, 9, 3, 2, separators=0))
    padding = torch.arange(64) >= torch.tensor([64, 40, 9, 3, 2])[:, None]
    assert torch.equal(batch["padding_mask"], padding)
    assert (batch["inputs"][padding] == PAD).all()
    mask = batch["mask"][:, 0]
    assert not (mask & padding).any()
    assert mask.sum(dim=1).tolist() == [num_span_masked(length, 0.35, 4, True) for length in (64, 40, 9, 3, 2)]
    spared = TextMaskCollator(VOCABULARY, mask_special=False)(samples(64, 40, 9, 3, 2, separators=0))["mask"][:, 0]
    assert spared.sum(dim=1).tolist() == [*(num_span_masked(length, 0.35, 4) for length in (64, 40, 9)), 1, 0]


@pytest.mark.parametrize("lengths", [(64, 40, 9, 3, 2), (64, 63, 62), (30, 64)])
@pytest.mark.parametrize("mask_special", [False, True])
def test_padded_rows_of_2_hide_equal_numbers_and_score_no_padding(lengths: tuple[int, ...], mask_special: bool) -> None:
    batch = TextMaskCollator(VOCABULARY, 0.48, 1, 4, mask_special=mask_special)(samples(*lengths, separators=0))
    mask, padding = batch["mask"], batch["padding_mask"]
    assert (mask.sum(dim=-1) == num_text_masked(64, 0.48, 1)).all()
    assert batch["visible"].shape == (len(lengths), 4, 64 - num_text_masked(64, 0.48, 1))
    own = mask & ~padding[:, None]
    assert torch.equal(batch["hidden"], own.flatten().nonzero()[:, 0])
    assert mask_special or not own[:, :, 0].any()
    for row, length in enumerate(lengths):
        assert own[row, 0].sum() == pytest.approx(0.48 * length, abs=1.5)


def test_2_that_spares_special_tokens_hides_inner_ones_only_where_there_is_nothing_else() -> None:
    ids = torch.tensor([FIRST, *[50, LAST] * 15, 50])
    batch = TextMaskCollator(VOCABULARY, 0.6, 1, num_masks=2, mask_special=False)([ids])
    assert (batch["mask"].sum(dim=-1) == num_text_masked(32, 0.6, 1)).all()
    assert not batch["mask"][:, :, 0].any()


def test_some_chosen_tokens_stay_or_become_random() -> None:
    collator = TextMaskCollator(VOCABULARY, 0.15, 1, leave_unmasked_prob=0.1, random_token_prob=0.1)
    batch = collator(samples(*[512] * 20))
    inputs, mask, corrupted = batch["inputs"], batch["mask"][:, 0], batch["corrupted"][:, 0]
    chosen = num_text_masked(512, 0.15, 1)
    tenth = round(0.1 * chosen)
    assert (mask.sum(dim=1) == chosen - 2 * tenth).all()
    assert (corrupted[mask] == MASK).all()
    replaced = (corrupted != inputs) & ~mask
    assert (replaced.sum(dim=1) <= tenth).all()
    assert replaced.sum() >= 0.9 * 20 * tenth, "a random token may be the true one, one time in 95"
    assert not SPECIAL[corrupted[replaced]].any()
    assert torch.equal(batch["hidden"], mask.flatten().nonzero()[:, 0]), "no loss where a token stays or is random"


def test_words_end_at_special_tokens() -> None:
    ids = torch.tensor([FIRST, 9, 10, 11, LAST, 13, 14, 16, 17, LAST])  # 9, 13 (after </s>) begin words
    starts = TextMaskCollator(VOCABULARY, 0.3, 1, whole_words=True)
    seen = set()
    for epoch in range(30):
        mask = starts([{"inputs": ids, "key": (epoch, 0)}])["mask"][0, 0]
        assert mask.sum() == 3
        seen.add(tuple(mask.nonzero()[:, 0].tolist()))
    assert (1, 2, 3) in seen
    assert not any({3, 5} <= set(places) and len(set(places) & {1, 2}) == 1 for places in seen)


def test_masks_are_a_pure_function_of_the_key() -> None:
    collator = TextMaskCollator(VOCABULARY, 0.15, 1, leave_unmasked_prob=0.1, random_token_prob=0.1, seed=3)
    rows = samples(60, 60, 60)
    together, alone = collator(rows), collator(rows[1:2])
    for name in ("mask", "corrupted"):
        assert torch.equal(together[name][1:2], alone[name])  # type: ignore[literal-required]
    assert not torch.equal(together["mask"], collator(samples(60, 60, 60, epoch=1))["mask"])
    other = TextMaskCollator(VOCABULARY, 0.15, 1, leave_unmasked_prob=0.1, random_token_prob=0.1, seed=4)
    assert not torch.equal(together["mask"], other(rows)["mask"])
    by_workers = next(iter(DataLoader(rows, batch_size=3, collate_fn=collator, num_workers=1)))  # type: ignore[arg-type]
    assert torch.equal(by_workers["mask"], together["mask"])


def test_collators_take_plain_ids_and_pad_to_multiples() -> None:
    batch = next(iter(DataLoader([text(20), text(9)], batch_size=2, collate_fn=TextMaskCollator(VOCABULARY))))  # type: ignore[arg-type]
    assert batch["mask"].shape == (2, 1, 20)
    batch = TextCollator(PAD, multiple_of=8)([[0, 5, 2], {"inputs": [0, 2], "label": 1}])
    assert batch["inputs"].tolist() == [[0, 5, 2, 1, 1, 1, 1, 1], [0, 2, 1, 1, 1, 1, 1, 1]]
    assert batch["padding_mask"].sum(dim=1).tolist() == [5, 6]
    assert "labels" not in batch


def test_wrong_arguments_are_named() -> None:
    for options, message in (
        ({"mask_prob": 1.5}, "mask_prob 1.5"),
        ({"mask_length": 0}, "spans of at least 1"),
        ({"num_masks": 0}, "num_masks 0: permitted is 1 or more"),
        ({"random_token_prob": -0.1}, "random_token_prob -0.1"),
        ({"random_token_prob": 0.5, "leave_unmasked_prob": 0.5}, "add up to less than 1"),
        ({"num_masks": 8, "leave_unmasked_prob": 0.1}, "2.0 drops hidden tokens"),
        ({"multiple_of": 0}, "multiple_of 0"),
    ):
        with pytest.raises(ValueError, match=message):
            TextMaskCollator(VOCABULARY, **options)
