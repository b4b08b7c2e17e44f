"""Learning rates of every step against tables made by the official code."""

from __future__ import annotations

import json
from typing import Any

import pytest
from golden_case import GOLDEN

from d2v_lightning.optim.schedules import cosine, polynomial, tri_stage

TABLES = json.loads((GOLDEN / "schedules.json").read_text())


def rate(name: str, options: dict[str, Any], step: int) -> float:
    """Our rate for a row of the table, from its official options."""
    if name.startswith("beit cosine"):
        per_epoch = options["niter_per_ep"]
        total, warmup = options["epochs"] * per_epoch, options["warmup_epochs"] * per_epoch
        return cosine(step, total, options["base_value"], warmup, floor=options["final_value"], inclusive=True)
    peak = options["lr"][0]
    if name.startswith("cosine"):
        warmup, floor = options["warmup_updates"], options.get("min_lr", 0.0)
        return cosine(step, options["max_update"], peak, warmup, floor, init=options.get("warmup_init_lr", 0.0))
    if name.startswith("polynomial"):
        end, power = options.get("end_learning_rate", 0.0), options.get("power", 1.0)
        return polynomial(step, options["total_num_update"], peak, options["warmup_updates"], end, power)
    if "phase_ratio" in options:
        stages = [int(options["max_update"] * ratio) for ratio in options["phase_ratio"]]
    else:
        stages = [options["warmup_steps"], options["hold_steps"], options["decay_steps"]]
    return tri_stage(step, peak, *stages, final_scale=options.get("final_lr_scale", 0.01))


LR_ROWS = [name for name in TABLES["lr"] if "tri_phase" not in name]  # no recipe uses BEiT's three-phase schedule


@pytest.mark.parametrize("name", LR_ROWS)
def test_learning_rates(name: str) -> None:
    row = TABLES["lr"][name]
    # At `max_update`, where no update is made any more, fairseq's cosine has begun a second period.
    last = row["options"]["max_update"] if name.startswith("cosine") else None
    values = [(step, value) for step, value in row["values"] if isinstance(step, int) and step != last]
    assert len(values) > 5
    for step, value in values:
        assert rate(name, row["options"], step) == pytest.approx(value, rel=1e-9, abs=1e-15), step
