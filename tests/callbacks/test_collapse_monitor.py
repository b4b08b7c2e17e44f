"""CollapseMonitor on tiny real runs, on fabricated readings, across processes and across a resume."""

from __future__ import annotations

import csv
import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import Blobs, Losses, blind, loader, tiny_model, trainer
from tiny_runs import PRETRAIN, ROOT, fails, write
from torch.utils.data import default_collate

import cli
from d2v_lightning import Targets
from d2v_lightning.callbacks import CollapseError, CollapseMonitor
from d2v_lightning.callbacks.collapse_monitor import describe, diagnose
from d2v_lightning.callbacks.collapse_statistics import measure
from d2v_lightning.callbacks.without_side_effects import without_side_effects
from d2v_lightning.flavour import pl

HEALTHY = {
    "target_relative": 0.9,
    "target_input_share": 0.6,
    "target_sample_share": 0.1,
    "target_rank": 12.0,
    "prediction_ratio": 0.3,
    "prediction_error": 0.4,
    "layer1_relative": 0.9,
}


def run(model: pl.LightningModule, monitor: CollapseMonitor, steps: int = 12) -> pl.Trainer:
    runner = trainer([monitor], steps)
    runner.fit(model, loader())
    return runner


@pytest.mark.parametrize(
    ("kind", "status", "cause"),
    [("healthy", "healthy", ""), ("position", "collapsed", "position-only"), ("constant", "collapsed", "constant")],
)
def test_a_collapse_is_called_by_its_cause(kind: str, status: str, cause: str) -> None:
    model = tiny_model(learned_positions=kind != "constant")
    monitor = CollapseMonitor(every_n_steps=4)
    run(model if kind == "healthy" else blind(model), monitor)
    assert monitor.verdict == (status, cause)
    if kind == "position":
        # what the variances alone say: all is well
        assert monitor.reading["target_variance"] > 0.5
        assert monitor.reading["target_rank"] == 0.0
        assert "predictable without looking at the input" in describe(monitor.verdict, monitor.reading)
        assert "EMA decay" in describe(monitor.verdict, monitor.reading)


def test_stop_ends_the_run_when_the_finding_has_come_twice() -> None:
    runner = trainer([CollapseMonitor(every_n_steps=3, on_collapse="stop")], 30)
    with pytest.raises(CollapseError, match="CollapseMonitor, step 6: COLLAPSED, position-only: targets are nearly"):
        runner.fit(blind(tiny_model()), loader())
    assert runner.global_step == 6


@pytest.mark.parametrize(
    ("model", "bounds", "reason"),
    [
        (
            blind(tiny_model(learned_positions=False)),
            {"min_target_std": 0.1},
            r"target_std is 0\.001\d*, below .* 0\.1:",
        ),
        (tiny_model(), {"min_prediction_std": 1e3}, "prediction_std is .*, below min_prediction_std 1000: lower the"),
    ],
    ids=["targets", "predictions"],
)
def test_released_bounds_stop_a_run_after_their_step_and_not_before(
    model: pl.LightningModule, bounds: dict[str, float], reason: str
) -> None:
    monitor = CollapseMonitor(every_n_steps=2, on_collapse="stop", stop_after=4, **bounds)
    runner = trainer([monitor], 30)
    with pytest.raises(CollapseError, match=f"CollapseMonitor, step 6: {reason}"):
        runner.fit(model, loader())
    assert runner.global_step == 6
    trainer([monitor], 3).fit(model, loader())  # over before `stop_after`, so nothing stops it
    warned = trainer([CollapseMonitor(every_n_steps=2, **bounds)], 5)
    with pytest.warns(UserWarning, match=f"CollapseMonitor, step 2: {reason}"):
        warned.fit(model, loader())
    assert warned.global_step == 5


def test_published_rows_have_the_released_bounds() -> None:
    """Defaults of data2vec_audio.py and data2vec2.py; 0 in the YAML files of 2.0 images; no such option in the others."""
    released = {"audio": (0.1, 0.01, 5000), "text_v2": (0.1, 0.01, 5000), "image_v2": (0.0, 0.0, 0)}
    for path in sorted((ROOT / "configs" / "pretrain").glob("*.yaml")):
        if not re.search("base|large|huge", path.stem):
            continue
        callbacks = yaml.safe_load(path.read_text())["trainer"]["callbacks"]
        options = next(one for one in callbacks if one["class_path"].endswith("CollapseMonitor")).get("init_args", {})
        monitor = CollapseMonitor(**options)
        expected = next((bounds for name, bounds in released.items() if path.stem.startswith(name)), (0.0, 0.0, 0))
        assert (*monitor.bounds.values(), monitor.stop_after) == expected, path.name
        assert bool(options) == path.stem.startswith(tuple(released)), path.name
        assert monitor.on_collapse == ("stop" if any(monitor.bounds.values()) else "warn"), path.name


def test_a_stopped_command_is_saved_has_one_line_and_its_resume_goes_on_counting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bounds = {"every_n_steps": 1, "on_collapse": "stop", "stop_after": 3, "min_target_std": 100.0}
    monitor = {"class_path": "CollapseMonitor", "init_args": bounds}
    settings = {**PRETRAIN, "trainer": {**PRETRAIN["trainer"], "callbacks": [monitor]}}
    command = ["fit", "--config", write(tmp_path / "tiny.yaml", settings), "--trainer.default_root_dir", str(tmp_path)]
    last = tmp_path / "checkpoints" / "last.ckpt"
    cli.main([*command, "--trainer.max_steps", "2"])
    printed = fails(capsys, 1, *command, "--trainer.max_steps", "9", "--ckpt_path", "last")
    assert printed.startswith("error: CollapseMonitor, step 4: target_std is ")
    assert printed.endswith(f"go on in any case. The last whole checkpoint is {last}\n")
    assert torch.load(last, weights_only=True)["global_step"] == 4


def test_values_reach_loggers_whatever_their_interval(tmp_path: Path) -> None:
    logger = pl.loggers.CSVLogger(str(tmp_path))
    runner = trainer([CollapseMonitor(every_n_steps=3)], 7, logger=logger, log_every_n_steps=50)
    runner.fit(tiny_model(), loader())
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        rows = {row["step"]: row["collapse/target_input_share"] for row in csv.DictReader(file)}
    assert list(rows) == ["3", "6"]
    assert float(rows["6"]) == pytest.approx(float(runner.callback_metrics["collapse/target_input_share"]))


def test_losses_are_the_same_bit_for_bit_with_and_without_it() -> None:
    losses = []
    for extra in ([], [CollapseMonitor(every_n_steps=1)]):
        record, model = Losses(), tiny_model()
        model.configure_callbacks = lambda model=model: [model.ema_teacher]  # type: ignore[method-assign] # no StepSeed
        trainer([record, *extra], 6).fit(model, loader())
        losses.append(record.values)
        assert model.training
        assert not model.teacher.training
    assert losses[0] == losses[1]


def test_it_measures_without_dropout() -> None:
    model, runner = tiny_model(dropout=0.5).train(), trainer([], 1)
    batch = default_collate([Blobs()[index] for index in range(8)])
    readings = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        with without_side_effects(runner, model):
            readings.append(measure(runner, model, batch))
    assert readings[0] == readings[1]


def test_what_the_position_explains_is_sought_where_it_still_is() -> None:
    model, runner = tiny_model(), trainer([], 1)
    layers = model.make_targets.average_top_k_layers
    model.make_targets = Targets(layers, norm_each=["position", "layer"], norm_after=[])
    batch = default_collate([Blobs()[index] for index in range(8)])
    with torch.no_grad():
        reading = measure(runner, model, batch)
    assert reading is not None
    shares = [value for name, value in reading.items() if name.startswith("layer") and name.endswith("_input_share")]
    assert reading["raw_input_share"] == pytest.approx(sum(shares) / len(shares))
    assert reading["raw_input_share"] < 0.95 < reading["target_input_share"]
    collapsed = {**HEALTHY, "target_input_share": 1.0, "raw_input_share": 0.004, "prediction_error": 0.97}
    finding = diagnose(collapsed, HEALTHY, {"target_input_share": 1.0, "target_rank": 12.0}, 450)
    assert finding == ("collapsed", "position-only results")
    assert "0 % of the variance of the teacher's results" in describe(finding, collapsed)


def test_a_verdict_is_said_when_it_changes_and_not_again(caplog: pytest.LogCaptureFixture) -> None:
    monitor = CollapseMonitor()
    bad = {**HEALTHY, "target_input_share": 0.02}
    with caplog.at_level(logging.INFO):
        for step, reading in enumerate([HEALTHY, HEALTHY, HEALTHY, bad, HEALTHY, bad, bad, bad, HEALTHY, HEALTHY]):
            monitor.update(reading, 100 * (step + 1))
    said = [record.getMessage() for record in caplog.records if "CollapseMonitor" in record.getMessage()]
    assert [line.partition(":")[0].split()[-1] for line in said] == ["200", "700", "1000"]
    assert monitor.verdict == ("healthy", "")


def test_state_survives_a_resume() -> None:
    whole, first, second = CollapseMonitor(patience=3), CollapseMonitor(patience=3), CollapseMonitor(patience=3)
    readings = [HEALTHY, HEALTHY, HEALTHY, *[{**HEALTHY, "target_rank": 1.5}] * 3]
    for step, reading in enumerate(readings):
        whole.update(reading, 100 * step)
        (first if step < 4 else second).update(reading, 100 * step)
        if step == 3:
            second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert whole.verdict == second.verdict == ("collapsed", "low-rank")
    assert whole.state_dict() == second.state_dict()


@pytest.mark.parametrize(
    ("changes", "first", "step", "expected"),
    [
        ({}, {}, 100, ("healthy", "")),
        ({"target_relative": 0.005}, {}, 100, ("collapsed", "constant")),
        ({"layer1_relative": 1e-6, "target_relative": 1e-6}, {}, 100, ("collapsed", "constant")),
        ({"target_input_share": 0.03}, {}, 100, ("collapsed", "position-only")),
        # a blank-looking start that gets better is no collapse, a start that stays is one
        ({"target_input_share": 0.04}, {"target_input_share": 0.02}, 100, ("warning", "position-only")),
        ({"target_input_share": 0.02}, {"target_input_share": 0.02}, 100, ("collapsed", "position-only")),
        # a fall is worth a warning long before the bottom
        ({"target_input_share": 0.12}, {}, 100, ("warning", "position-only")),
        ({"target_sample_share": 0.98}, {}, 100, ("collapsed", "sample-only")),
        ({"target_rank": 1.5}, {}, 100, ("collapsed", "low-rank")),
        # one direction from the start may be the data: a warning; and none at all where it rises
        ({"target_rank": 1.1}, {"target_rank": 1.1}, 100, ("warning", "low-rank")),
        ({"target_rank": 1.8}, {"target_rank": 1.1}, 100, ("healthy", "")),
        ({"prediction_error": 0.02}, {}, 100, ("collapsed", "trivial")),
        ({"prediction_error": 0.02, "target_input_share": 0.02}, {}, 100, ("collapsed", "position-only")),
        ({"prediction_ratio": 0.0}, {}, 100, ("healthy", "")),
        ({"prediction_ratio": 0.001}, {}, 2000, ("warning", "mean-prediction")),
    ],
)
def test_judgement(changes: dict[str, float], first: dict[str, float], step: int, expected: tuple[str, str]) -> None:
    start, now = {**HEALTHY, **first}, {**HEALTHY, **changes}
    best = {name: max(start[name], now[name]) for name in ("target_input_share", "target_rank")}
    assert diagnose(now, start, best, step) == expected


@pytest.mark.parametrize(
    ("points", "status"),
    [
        (((500, 1.37, 0.904), (1000, 0.38, 0.863), (2000, 0.13, 0.852), (3000, 0.22, 0.813)), "collapsed"),
        (((750, 2.85, 0.596), (1500, 3.32, 0.681), (3000, 3.50, 0.713)), "healthy"),
    ],
    ids=["collapsed", "learned"],
)
def test_two_speech_runs_of_the_official_code_are_told_apart(
    points: tuple[tuple[int, float, float], ...], status: str
) -> None:
    """Step, loss and standard deviation of the targets of two runs, 256 wide; all else taken to look healthy.

    The first ended with a language probe at .355, below an untrained network, the second at .937.
    """
    width, best = 256, {"target_input_share": 0.6, "target_rank": 12.0}
    verdicts = {}
    for step, loss, std in points:
        error = loss / width**0.5 / std**2  # the loss is the squared error summed over the width, / sqrt(width)
        verdicts[step] = diagnose({**HEALTHY, "prediction_error": error}, HEALTHY, best, step).status
    assert verdicts.pop(500, "healthy") == "healthy"
    assert set(verdicts.values()) == {status}


def test_two_processes_read_what_one_reads_on_the_joint_batch(tmp_path: Path) -> None:
    script = Path(__file__).parent / "two_processes.py"
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, timeout=300, cwd=Path.cwd())
    ranks: list[Any] = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    assert ranks[0]["reading"] == pytest.approx(json.loads((tmp_path / "joint.json").read_text()), rel=1e-4, abs=1e-7)
    # and the preemption that one process alone was told of, in step 3, ended both in the step on which they agree
    assert ranks[0]["saved at"] == 4
    assert (tmp_path / "exit").read_text() == "143"
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4


def test_a_position_only_phase_that_passes_is_no_collapse() -> None:
    """Readings of two runs on an hour of speech: one recovered after 150 steps, one was still there after 300."""
    healthy = {
        "target_relative": 1.0, "target_input_share": 0.8, "target_sample_share": 0.3, "prediction_error": 0.5,
        "target_rank": 40.0, "prediction_ratio": 0.5, "layer3_relative": 1.0,
    }  # fmt: skip
    phase = {**healthy, "target_input_share": 0.02, "prediction_error": 0.06}
    monitor = CollapseMonitor(every_n_steps=50, patience=2)
    said = []
    for step, reading in enumerate([healthy, healthy, phase, phase, phase, healthy, healthy] + 6 * [phase], start=1):
        monitor.update(reading, 50 * step)
        said.append(monitor.verdict.status if monitor.verdict else "")
    assert said == ["", *2 * ["healthy"], *3 * ["warning"], "healthy", "healthy", *4 * ["warning"], "collapsed"]
    nothing_left = CollapseMonitor(every_n_steps=50, patience=2)
    for step in (1, 2):
        nothing_left.update({**phase, "target_input_share": 0.001}, 50 * step)
    assert nothing_left.verdict is not None
    assert nothing_left.verdict.status == "collapsed"
