"""How GLUE is scored as published: which epoch of a run counts, which learning rate, and what the table says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

PUBLISHED = ("mnli", "qnli", "rte", "mrpc", "qqp", "stsb", "cola", "sst2")
"""Tasks of the papers' tables, in their order. WNLI is left out there (paper 1.0, footnote 6)."""
_UNCOUNTED = ("wnli",)


class Monitor(NamedTuple):
    """The figure of the development set that says which epoch of a run is kept, and whether "max" or "min" is best."""

    name: str
    mode: str


class Protocol(NamedTuple):
    """What a release does.

    rates: learning rates that are tried.
    one_rate: one of them is chosen for all tasks; otherwise one for each.
    monitors: of a task; of others `score`, the metric that the task is reported by.
    """

    rates: tuple[float, ...]
    one_rate: bool
    monitors: dict[str, Monitor]

    def monitor(self, task: str) -> Monitor:
        """The figure that an epoch of a task is kept by."""
        return self.monitors.get(task, Monitor("val/score", "max"))


PROTOCOLS = {
    # Paper 1.0, 4.3: of four rates the one "which performs best across all considered NLP downstream tasks". Metrics are
    # `best_checkpoint_metric` of fairseq examples/roberta/config/finetuning/*.yaml. sts_b.yaml names none, so it is the loss.
    "1.0": Protocol(
        (1e-5, 2e-5, 3e-5, 4e-5),
        True,
        {**dict.fromkeys(("cola", "mrpc", "qqp"), Monitor("val/accuracy", "max")), "stsb": Monitor("val/loss", "min")},
    ),
    # fairseq examples/data2vec/README.md: "sweep [1e-5|2e-5|4e-5|6e-5] for each task". Metrics of
    # examples/data2vec/config/v2/text_finetuning/*.yaml: mcc, acc_and_f1, pearson_and_spearman, else accuracy.
    "2.0": Protocol((1e-5, 2e-5, 4e-5, 6e-5), False, {}),
}
SEEDS = (0, 1, 2, 3, 4)
"""Of five runs, whose mean is reported (paper 1.0, 5.3). Which seeds is not published."""


class Run(NamedTuple):
    """A fine-tuned model: `figures` of the development set, from 0 to 1, of the epoch that was kept."""

    task: str
    rate: float
    seed: int
    figures: dict[str, float]

    @property
    def score(self) -> float:
        """What the run is reported by; of MNLI the mean of both development sets. Undefined correlations count as 0."""
        found = [self.figures["score"], *(self.figures[n] for n in ("mismatched_score",) if n in self.figures)]
        return fmean(0.0 if math.isnan(value) else value for value in found)


class Row(NamedTuple):
    """A task in the table, in per cent: mean, lowest and highest score over the seeds, at the rate that was chosen.

    figures: mean of each of the task's metrics.
    best_seed: of the run with the highest score.
    """

    task: str
    rate: float
    score: float
    lowest: float
    highest: float
    figures: dict[str, float]
    best_seed: int


def choose_rates(runs: Sequence[Run], one_rate: bool) -> dict[str, float]:
    """The learning rate of each task; of equals the lowest.

    Args:
        runs: every task at every rate.
        one_rate: the one rate whose mean over tasks is best, WNLI aside, for all of them; otherwise the best of each task.
    """
    means = {
        task: {rate: fmean(run.score for run in runs if (run.task, run.rate) == (task, rate)) for rate in rates}
        for task, rates in _rates(runs).items()
    }
    if not one_rate:
        return {task: max(by_rate, key=by_rate.__getitem__) for task, by_rate in means.items()}
    counted = _counted(list(means))
    best = max(means[counted[0]], key=lambda rate: fmean(means[task][rate] for task in counted))
    return dict.fromkeys(means, best)


def table(runs: Sequence[Run], one_rate: bool) -> list[Row]:
    """A row for each task, in the order of the runs; see `choose_rates`."""
    rows = []
    for task, rate in choose_rates(runs, one_rate).items():
        mine = [run for run in runs if (run.task, run.rate) == (task, rate)]
        scores = [100 * run.score for run in mine]
        names = [name for name in mine[0].figures if name != "loss" and not name.endswith("score")]
        figures = {name: 100 * fmean(run.figures[name] for run in mine) for name in names}
        best = max(mine, key=lambda run: run.score)
        rows.append(Row(task, rate, fmean(scores), min(scores), max(scores), figures, best.seed))
    return rows


def average(rows: Sequence[Row]) -> float:
    """Mean score of the tasks, WNLI aside."""
    counted = _counted([row.task for row in rows])
    return fmean(row.score for row in rows if row.task in counted)


def as_text(rows: Sequence[Row]) -> str:
    """The table for people."""
    lines = [f"{'task':<6}{'rate':>8}{'score':>8}{'lowest':>8}{'highest':>8}   mean of each metric"]
    for row in rows:
        cells = "".join(f"{value:8.1f}" for value in (row.score, row.lowest, row.highest))
        metrics = ", ".join(f"{name} {value:.1f}" for name, value in row.figures.items())
        lines.append(f"{row.task:<6}{row.rate:>8g}{cells}   {metrics}")
    counted = _counted([row.task for row in rows])
    published = "the published eight" if set(counted) == set(PUBLISHED) else "not the published eight"
    lines.append(f"average of {len(counted)} task(s), {published}: {average(rows):.1f}")
    return "\n".join(lines)


def _rates(runs: Sequence[Run]) -> dict[str, list[float]]:
    tasks = dict.fromkeys(run.task for run in runs)
    return {task: sorted({run.rate for run in runs if run.task == task}) for task in tasks}


def _counted(tasks: list[str]) -> list[str]:
    return [task for task in tasks if task not in _UNCOUNTED] or tasks


def as_json(rows: Sequence[Row]) -> dict[str, Any]:
    """The table as plain data."""
    return {"rows": [row._asdict() for row in rows], "average": average(rows)}
