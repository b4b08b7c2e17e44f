"""Guards: what every module of ours brings along."""

from __future__ import annotations

import pytest
from tiny import tiny_image_model

from d2v_lightning.callbacks.guards import guards

ALWAYS = {"StepSeed", "ExactResume", "HalfPrecisionCheck"}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("finite", [False, True])
def test_two_of_them_are_for_some_runs_alone(compiled: bool, finite: bool) -> None:
    names = [type(callback).__name__ for callback in guards(compiled, finite)]
    expected = ALWAYS | ({"CompileWatch"} if compiled else set()) | ({"FiniteLoss"} if finite else set())
    assert len(names) == len(expected)
    assert set(names) == expected


def test_a_run_that_leaves_out_what_is_not_finite_is_not_ended_by_it() -> None:
    for choice in ("stop", "skip"):
        callbacks = tiny_image_model(on_nonfinite=choice).configure_callbacks()  # type: ignore[arg-type]
        names = {type(callback).__name__ for callback in callbacks}
        assert names == ALWAYS | {"EMATeacher"} | ({"FiniteLoss"} if choice == "stop" else set())
