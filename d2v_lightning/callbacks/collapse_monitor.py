"""CollapseMonitor: does the teacher still say something about its input? A line in words, and the numbers behind it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from d2v_lightning.callbacks.collapse_statistics import measure
from d2v_lightning.callbacks.objective_of import objective_of
from d2v_lightning.callbacks.order import put_first
from d2v_lightning.callbacks.without_side_effects import without_side_effects
from d2v_lightning.configurable import Configurable
from d2v_lightning.flavour import pl, rank_zero_info, rank_zero_only, rank_zero_warn
from d2v_lightning.support.errors import UserError

log = logging.getLogger(__name__)

Status = Literal["healthy", "warning", "collapsed"]

# Variance of the targets as part of their mean square, which is about 1 after any norm. .01 is fairseq's limit: its
# trainer stops below a standard deviation of .1 (`min_target_var`).
CONSTANT, NEARLY_CONSTANT = 0.01, 0.05
# The same for a raw layer result: a standard deviation of 1 % of its size. A norm blows that up to a healthy-looking target.
CONSTANT_LAYER = 1e-4
# Part of the target variance that the position does not explain. Tiny runs on digits and smooth noise that learned: .2 to
# .9 once settled, with dips to .11 in their first 200 steps; untrained: .37 to .7; networks that see nothing: 0.
POSITION_ONLY, NEARLY_POSITION_ONLY, FALL = 0.05, 0.1, 0.25
# Small speech models pass through targets like that in their first hundreds of steps (.02 for 150 steps, then .8 with a fast
# teacher) and recover: unless nothing at all is left, such a finding is a warning until it has come three times as often.
NOTHING_LEFT, LASTING = 0.005, 3
# Error of the student as part of the target variance. Meta's code on an hour of speech, loss and variance of two runs: .10
# after 500 steps, .03 after 1,000 and .01 after 2,000 where it collapsed (language probe below an untrained network's), .50
# to .43 where it learned; digits: .25 to .5.
TRIVIAL, NEARLY_TRIVIAL = 0.05, 0.1
# Part of the variance over the batch that all positions of a sample share. Healthy runs: below .3.
SAMPLE_ONLY, NEARLY_SAMPLE_ONLY = 0.97, 0.9
# Directions. Absolute, because data may be simple (patches of one pixel span one direction in an untrained network), so
# what counts is a fall from the largest value seen; healthy runs rise.
LOW_RANK, RANK_FALL = 2.0, 0.25
# Variance of the predictions over the batch as part of the targets'. It starts at 0, because a student first learns the
# mean; healthy runs have passed .02 after 400 steps, so silence counts from step 1,000.
SILENT_STUDENT, STUDENT_STEPS = 0.01, 1000

LOWER = "lower the learning rate, lengthen the warm-up, raise the EMA decay"
CAUSES = {
    "constant": ("constant representation: the targets hardly differ between tokens", LOWER),
    "position-only": (
        "position-only: targets are nearly a function of position, predictable without looking at the input",
        f"{LOWER}; check that inputs are not blank and the patch embedding is not zero",
    ),
    "position-only results": (
        "position-only results: before the norm 'position' the teacher's results are nearly a function of position, "
        "and little but noise is left to predict",
        LOWER,
    ),
    "sample-only": (
        "sample-only: all positions of a sample have nearly the same target, so that one visible token gives all away",
        f"{LOWER}; average fewer top layers; check that the model is given positions",
    ),
    "trivial": (
        "trivial targets: the student predicts nearly all of them, so that they hardly depend on what is hidden",
        f"{LOWER}; check that enough is hidden, in blocks or spans",
    ),
    "low-rank": ("low rank: the targets vary in very few directions", LOWER),
    "mean-prediction": (
        "the student predicts the mean: its predictions hardly depend on the input",
        "check that the learning rate has risen, that gradients reach the student, and that not too much is hidden",
    ),
}


class CollapseError(UserError):
    """A run was stopped because it has collapsed."""


class Finding(NamedTuple):
    """What one check says: a key of `CAUSES` (empty where healthy) and how bad it is."""

    status: Status
    cause: str = ""


class CollapseMonitor(Configurable, pl.Callback):
    """Measures targets, predictions and raw teacher layers on the training batch and gives a verdict.

    A falling loss and lively variances do not show that a model learns: targets that follow from the position alone vary
    over positions as much as good ones, and are easy to predict. So variance is split into what the position explains and
    what only the input can. Measured without dropout and leaving random states alone; one check costs about as much as
    one training step. Logged under `collapse/`, at the number of optimiser steps taken:

    - `target_variance_batch`, `_positions`, `target_variance` (per channel, averaged), the same for `prediction_`;
    - `target_input_share`: part of the variance that position does not explain, 0 in a position-only collapse;
    - `raw_input_share`: the mean of that of the teacher's raw results, where the norm "position" takes out of the targets
      what the position explains, so that theirs is always 1;
    - `target_sample_share`: part of the variance over the batch common to all positions of a sample;
    - `target_rank`, `target_rank_tokens`: effective rank around the mean of each position, and around the overall mean;
    - `prediction_ratio`: variance of predictions over the batch as part of that of the targets;
    - `prediction_error`: mean squared error of the predictions as part of the variance of the targets;
    - `target_relative`, `layer<l>_relative`: variance as part of the mean square;
    - `target_std`, `prediction_std`: standard deviation per channel over the hidden tokens of all ranks, averaged;
    - `layer<l>_variance`, `layer<l>_std`, `layer<l>_input_share`: raw results of block l that enter the target;
    - `verdict`: 0 healthy, 1 warning, 2 collapsed.

    The thresholds, and where they come from, stand at the head of this file. A finding counts once it has come
    `patience` times in a row, and a network that starts out poor but is getting better is warned of, not called collapsed.

    The released code has no verdict but two bounds: `min_target_var` and `min_pred_var` of examples/data2vec/models/
    data2vec_audio.py and data2vec2.py, standard deviations in spite of their names. After 5,000 updates its run fails at the
    first batch whose targets are below .1, or whose predictions are below .01. The recipes of such rows set these and
    `on_collapse: stop`. Each check looks at them, without dropout. The release looks at every batch, with dropout.

    A run that is stopped is saved as at any other end. `fit` then raises `CollapseError`; a command ends with its line and
    status 1.

    Args:
        every_n_steps: optimiser steps between checks.
        patience: checks in a row that must agree before the verdict changes: one batch proves nothing.
        on_collapse: what a verdict "collapsed", or a reading below a bound, does: "warn" goes on, "stop" stops the run.
        min_target_std, min_prediction_std: bounds of `target_std` and `prediction_std`; one reading below them counts. 0 is
            none, as released for images, and for text of 1.0.
        stop_after: optimiser steps in which bounds do not count and nothing stops the run. Released: 5,000. Small runs are
            over by then, so the default is 0.
        modality: in a run of several, the one that this monitor looks at, at its first batch after every so many steps; each
            has a monitor of its own. Its name then follows `collapse/`.
    """

    def __init__(
        self,
        every_n_steps: int = 100,
        patience: int = 2,
        on_collapse: Literal["warn", "stop"] = "warn",
        modality: str | None = None,
        min_target_std: float = 0.0,
        min_prediction_std: float = 0.0,
        stop_after: int = 0,
    ) -> None:
        if every_n_steps < 1 or patience < 1:
            raise UserError(f"every_n_steps is {every_n_steps}, patience is {patience}: choose 1 or more for both")
        if on_collapse not in ("warn", "stop"):
            raise UserError(f"on_collapse is {on_collapse!r}: choose 'warn' or 'stop'")
        self.every_n_steps, self.patience, self.on_collapse = every_n_steps, patience, on_collapse
        if min(min_target_std, min_prediction_std, stop_after) < 0:
            raise UserError(
                f"min_target_std is {min_target_std}, min_prediction_std is {min_prediction_std}, stop_after is "
                f"{stop_after}: choose 0 or more for each"
            )
        self.modality, self.stop_after = modality, stop_after
        self.bounds = {"target_std": min_target_std, "prediction_std": min_prediction_std}
        self._reason: str | None = None  # why the run is being stopped
        self._warned = False  # of a bound
        self._name = "CollapseMonitor" if modality is None else f"CollapseMonitor ({modality})"
        self.verdict: Finding | None = None
        self.reading: dict[str, float] = {}
        self._first: dict[str, float] = {}
        self._best: dict[str, float] = {}
        self._candidate, self._times = Finding("healthy"), 0
        self._last_step = self._last_check = 0

    @property
    def state_key(self) -> str:
        """Where its state stands in a checkpoint: several monitors have several places."""
        return super().state_key if self.modality is None else self._generate_state_key(modality=self.modality)

    def state_dict(self) -> dict[str, Any]:
        return {
            "verdict": list(self.verdict) if self.verdict else None,
            "candidate": list(self._candidate),
            "times": self._times,
            "first": dict(self._first),
            "best": dict(self._best),
            "reading": dict(self.reading),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.verdict = Finding(*state_dict["verdict"]) if state_dict["verdict"] else None
        self._candidate, self._times = Finding(*state_dict["candidate"]), state_dict["times"]
        self._first, self._best = dict(state_dict["first"]), dict(state_dict["best"])
        self.reading = dict(state_dict["reading"])

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        put_first(trainer, self)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last_step = self._last_check = trainer.global_step
        self._reason, self._warned = None, False  # of a `fit` before this one
        objective_of(pl_module, self.modality, "CollapseMonitor")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, since = trainer.global_step, self._last_check // self.every_n_steps
        stepped, self._last_step = step != self._last_step, step
        mine = self.modality is None or batch["modality"] == self.modality
        if not (stepped and mine) or step // self.every_n_steps == since:
            return
        self._last_check = step
        with without_side_effects(trainer, pl_module):
            reading = measure(trainer, objective_of(pl_module, self.modality, "CollapseMonitor"), batch)
        if reading is None:
            rank_zero_warn(f"{self._name} sees a single sample a step and can say nothing: use a larger batch")
            return
        self.update(reading, step)
        prefix = "collapse/" if self.modality is None else f"collapse/{self.modality}/"
        values = {f"{prefix}{name}": value for name, value in self.reading.items()}
        # Past the Trainer's log_every_n_steps, which would drop most checks; `log` puts them into callback_metrics.
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step)
        pl_module.log_dict(values, logger=False, batch_size=1)
        self._stop_or_warn(trainer, step)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._reason is not None:  # and all is saved, as at any other end
            raise CollapseError(self._reason)

    def _stop_or_warn(self, trainer: pl.Trainer, step: int) -> None:
        """What follows from the reading of this step."""
        if step <= self.stop_after:
            return
        reason = self._below_bounds()
        if reason is not None and self.on_collapse == "warn" and not self._warned:
            self._warned = True
            rank_zero_warn(f"{self._name}, step {step}: {reason}")
        if reason is None and self.verdict is not None and self.verdict.status == "collapsed":
            reason = describe(self.verdict, self.reading)
        if reason is not None and self.on_collapse == "stop":
            stopped = "The run was stopped: set on_collapse to warn to go on in any case"
            self._reason = f"{self._name}, step {step}: {reason}. {stopped}"
            trainer.should_stop = True

    def _below_bounds(self) -> str | None:
        """The first bound that the reading is below, in words."""
        for name, bound in self.bounds.items():
            if self.reading[name] < bound:
                return f"{name} is {self.reading[name]:.4g}, below min_{name} {bound:g}: {LOWER}"
        return None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.verdict is not None:
            self._say(f"at the end, step {trainer.global_step}", self.verdict)

    def update(self, reading: Mapping[str, float], step: int) -> None:
        """Take in one check: remember it, and change the verdict once it has come often enough."""
        self._first = self._first or dict(reading)
        for name in ("target_input_share", "target_rank"):
            self._best[name] = max(reading[name], self._best.get(name, 0.0))
        finding = diagnose(reading, self._first, self._best, step)
        self._times = self._times + 1 if finding == self._candidate else 1
        self._candidate = finding
        passing = telling_share(reading)[0] > NOTHING_LEFT and self._times < LASTING * self.patience
        if finding.status == "collapsed" and finding.cause.startswith("position-only") and passing:
            finding = Finding("warning", finding.cause)
        changed = self._times >= self.patience and finding != self.verdict
        if changed:
            self.verdict = finding
        grade = ("healthy", "warning", "collapsed").index(self.verdict.status) if self.verdict else 0
        self.reading = {**reading, "verdict": float(grade)}
        if changed and self.verdict is not None:
            self._say(f"step {step}", self.verdict)

    def _say(self, when: str, verdict: Finding) -> None:
        line = f"{self._name}, {when}: {describe(verdict, self.reading)}"
        if verdict.status == "healthy":
            rank_zero_info(line)
        else:
            rank_zero_only(log.warning)(line)


def diagnose(reading: Mapping[str, float], first: Mapping[str, float], best: Mapping[str, float], step: int) -> Finding:
    """The verdict that one check suggests.

    Args:
        reading: the values of this check, named as in `CollapseMonitor`.
        first: those of the first check of the run.
        best: largest values so far of `target_input_share` and `target_rank`.
        step: optimiser steps taken.
    """

    def grade(name: str, collapsed: float, warning: float, cause: str) -> Finding | None:
        value = reading[name]
        recovering = value > 1.2 * first[name] and value > 0.2 * collapsed
        if value < collapsed:
            return Finding("warning" if recovering else "collapsed", cause)
        if value < warning and not recovering:
            return Finding("warning", cause)
        return None

    if max(value for name, value in reading.items() if name.endswith("_relative")) < CONSTANT_LAYER:
        return Finding("collapsed", "constant")
    share, rank = reading["target_input_share"], reading["target_rank"]
    found = grade("target_relative", CONSTANT, NEARLY_CONSTANT, "constant") or grade(
        "target_input_share", POSITION_ONLY, NEARLY_POSITION_ONLY, "position-only"
    )
    if found is not None:
        return found
    if share < FALL * best["target_input_share"]:
        return Finding("warning", "position-only")
    raw_share = reading.get("raw_input_share", 1.0)
    if raw_share < NEARLY_POSITION_ONLY:
        return Finding("collapsed" if raw_share < POSITION_ONLY else "warning", "position-only results")
    if reading["target_sample_share"] > NEARLY_SAMPLE_ONLY:
        return Finding("collapsed" if reading["target_sample_share"] > SAMPLE_ONLY else "warning", "sample-only")
    if reading["prediction_error"] < NEARLY_TRIVIAL:
        return Finding("collapsed" if reading["prediction_error"] < TRIVIAL else "warning", "trivial")
    fallen = rank < RANK_FALL * best["target_rank"]
    if fallen or (rank < LOW_RANK and rank < 1.2 * first["target_rank"]):
        return Finding("collapsed" if fallen and rank < LOW_RANK else "warning", "low-rank")
    if step >= STUDENT_STEPS and reading["prediction_ratio"] < SILENT_STUDENT:
        return Finding("warning", "mean-prediction")
    return Finding("healthy")


def telling_share(reading: Mapping[str, float]) -> tuple[float, str]:
    """The input share that can fall, and of what it is: of the targets, or of the raw results where a norm hides it there."""
    if "raw_input_share" in reading:
        return reading["raw_input_share"], "variance of the teacher's results"
    return reading["target_input_share"], "target variance"


def describe(finding: Finding, reading: Mapping[str, float]) -> str:
    """One line: verdict, cause, the numbers that matter most, what to do."""
    share, of = telling_share(reading)
    facts = (
        f"{100 * share:.0f} % of the {of} comes from the input rather than the position, "
        f"{100 * reading['prediction_error']:.0f} % of the targets' is still to be predicted, effective rank "
        f"{reading['target_rank']:.1f}"
    )
    if not finding.cause:
        return f"healthy ({facts})"
    cause, remedy = CAUSES[finding.cause]
    word = "COLLAPSED" if finding.status == "collapsed" else "warning"
    return f"{word}, {cause} ({facts}). Try: {remedy}"
