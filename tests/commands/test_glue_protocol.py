"""Rates, metrics and tables of both protocols are the published ones, on tables made by hand."""

from __future__ import annotations

import itertools

import pytest

from d2v_lightning.commands.glue_protocol import (
    PROTOCOLS,
    PUBLISHED,
    SEEDS,
    Run,
    as_text,
    average,
    choose_rates,
    table,
)
from d2v_lightning.finetune.glue_tasks import METRICS

# `best_checkpoint_metric` of fairseq examples/roberta/config/finetuning/*.yaml; sts_b.yaml has none: the default, loss.
RELEASED_1 = {
    **dict.fromkeys(("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2"), ("accuracy", "max")),
    "stsb": ("loss", "min"),
}
# Of examples/data2vec/config/v2/text_finetuning/*.yaml, as what fairseq/criterions/sentence_prediction.py computes.
RELEASED_2 = {
    **dict.fromkeys(("mnli", "qnli", "rte", "sst2"), ("accuracy",)),
    "cola": ("matthews",),
    **dict.fromkeys(("mrpc", "qqp"), ("accuracy", "f1")),
    "stsb": ("pearson", "spearman"),
}


def test_rates_seeds_and_tasks_are_the_published_ones() -> None:
    assert PROTOCOLS["1.0"].rates == (1e-5, 2e-5, 3e-5, 4e-5)
    assert PROTOCOLS["2.0"].rates == (1e-5, 2e-5, 4e-5, 6e-5)
    assert [PROTOCOLS[name].one_rate for name in ("1.0", "2.0")] == [True, False]
    assert len(set(SEEDS)) == 5
    assert sorted(PUBLISHED) == sorted(RELEASED_1)


@pytest.mark.parametrize("task", PUBLISHED)
def test_an_epoch_is_kept_by_the_released_metric(task: str) -> None:
    name, mode = PROTOCOLS["1.0"].monitor(task)
    kept_by = METRICS[task] if name == "val/score" else (name.removeprefix("val/"),)
    assert (kept_by, mode) == ((RELEASED_1[task][0],), RELEASED_1[task][1])
    assert PROTOCOLS["2.0"].monitor(task) == ("val/score", "max")
    assert METRICS[task] == RELEASED_2[task]


def runs(scores: dict[tuple[str, float], list[float]]) -> list[Run]:
    return [Run(*key, seed, {"score": score}) for key, found in scores.items() for seed, score in enumerate(found)]


def test_one_rate_for_all_tasks_is_not_the_best_of_each() -> None:
    made = runs(
        {("rte", 1.0): [0.5, 0.7], ("rte", 2.0): [0.7, 0.8], ("sst2", 1.0): [0.95, 0.93], ("sst2", 2.0): [0.8, 0.7]}
    )
    assert choose_rates(made, one_rate=False) == {"rte": 2.0, "sst2": 1.0}
    assert choose_rates(made, one_rate=True) == {"rte": 1.0, "sst2": 1.0}
    best, one = (table(made, one_rate) for one_rate in (False, True))
    assert [row.score for row in best] == pytest.approx([75, 94])
    assert [row.score for row in one] == pytest.approx([60, 94])
    assert (one[0].lowest, one[0].highest, one[0].best_seed) == (50, 70, 1)
    assert average(best) == pytest.approx(84.5)


def test_of_equal_rates_the_lowest_is_taken_in_whatever_order_they_ran() -> None:
    made = runs({("rte", 2.0): [0.5], ("rte", 1.0): [0.5]})
    assert choose_rates(made, one_rate=True) == choose_rates(made, one_rate=False) == {"rte": 1.0}


def test_wnli_neither_chooses_the_rate_nor_counts() -> None:
    made = runs({("wnli", 1.0): [0.1], ("wnli", 2.0): [0.9], ("rte", 1.0): [0.7], ("rte", 2.0): [0.6]})
    rows = table(made, one_rate=True)
    assert [(row.task, row.rate) for row in rows] == [("wnli", 1.0), ("rte", 1.0)]
    assert average(rows) == pytest.approx(70)
    assert average(rows[:1]) == pytest.approx(10), "alone it is all there is"


def test_mnli_counts_once_with_both_development_sets_and_what_is_undefined_as_nothing() -> None:
    figures = {"loss": 0.4, "score": 0.84, "accuracy": 0.84, "mismatched_score": 0.82, "mismatched_accuracy": 0.82}
    (row,) = table([Run("mnli", 1.0, 0, figures)], one_rate=True)
    assert row.score == pytest.approx(83)
    assert row.figures == pytest.approx({"accuracy": 84, "mismatched_accuracy": 82})
    assert Run("stsb", 1.0, 0, {"score": float("nan")}).score == 0.0


@pytest.mark.parametrize(
    ("mnli", "others", "published"),
    [
        ((83.2, 83.0), (90.9, 67.0, 90.2, 89.1, 87.2, 62.2, 91.8), "82.7"),
        ((82.8, 83.4), (91.1, 69.9, 90.0, 89.0, 87.7, 60.3, 92.4), "82.9"),
        ((84.1, 83.9), (90.4, 69.3, 89.0, 89.3, 88.9, 56.8, 92.3), "82.5"),
    ],
)
def test_the_average_is_that_of_the_paper(mnli: tuple[float, float], others: tuple[float, ...], published: str) -> None:
    """Rows of table 4 of paper 1.0: data2vec, with spans of four, and RoBERTa trained again."""
    made = [Run("mnli", 1.0, 0, {"score": mnli[0] / 100, "mismatched_score": mnli[1] / 100})]
    made += [Run(task, 1.0, 0, {"score": score / 100}) for task, score in zip(PUBLISHED[1:], others, strict=True)]
    text = as_text(table(made, one_rate=True))
    assert text.endswith(f"average of 8 task(s), the published eight: {published}")
    names = [line.split()[0] for line in text.splitlines()[1:-1]]
    assert names == list(PUBLISHED)
    assert "average of 2 task(s), not the published eight" in as_text(table(list(itertools.islice(made, 2)), True))
