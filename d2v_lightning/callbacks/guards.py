"""What every module of ours brings along: an exact resume, and a word where a run goes wrong."""

from __future__ import annotations

from d2v_lightning.callbacks.compile_watch import CompileWatch
from d2v_lightning.callbacks.exact_resume import ExactResume
from d2v_lightning.callbacks.finite_loss import FiniteLoss
from d2v_lightning.callbacks.half_precision import HalfPrecisionCheck
from d2v_lightning.callbacks.step_seed import StepSeed
from d2v_lightning.flavour import pl


def guards(compiled: bool, finite: bool = True) -> list[pl.Callback]:
    """Callbacks for `configure_callbacks`.

    Args:
        compiled: whether the module is compiled.
        finite: whether a loss that is not finite ends the run.
    """
    guard = [FiniteLoss()] if finite else []
    watch = [CompileWatch()] if compiled else []
    return [StepSeed(), ExactResume(), HalfPrecisionCheck(), *guard, *watch]
