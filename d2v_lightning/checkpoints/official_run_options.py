"""What Meta's files say of the run that made them: optimiser, schedule, batch, length and precision, in our terms."""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

from d2v_lightning.checkpoints.options import Options, learning_rate, option, refuse_unknown
from d2v_lightning.configurable import Tree
from d2v_lightning.optim.optimization import Optimization
from d2v_lightning.support.errors import UserError

_NUMBER = re.compile(r"-?\d+\.?\d*(?:[eE][-+]?\d+)?")
PRECISION = "bf16-mixed"  # in the place of fairseq's and BEiT's fp16 with a loss scaler


class Batch(NamedTuple):
    """Samples, or tokens, that a device sees at once, None where that is open, and how many batches an update has."""

    samples: int | None
    tokens: int | None
    batches: int


def section(options: Options, name: str) -> Options:
    """One section of options.

    Raises:
        ValueError: there is none.
    """
    found = options.get(name)
    if not isinstance(found, Options):
        raise UserError(f"its cfg has no section {options.place}{name}, so what made it is not known")
    return found


def number(options: Options, name: str) -> float | None:
    """A number, None where it is not set.

    Raises:
        ValueError: it is something else.
    """
    return None if option(options, name, default=None) is None else float(option(options, name, default=0.0))


def needed(options: Options, name: str) -> float:
    """A number that has no default.

    Raises:
        ValueError: it is missing, or something else.
    """
    found = number(options, name)
    if found is None:
        raise UserError(f"its option {options.place}{name} is not set, so what made it is not known")
    return found


def counted(options: Options, name: str, default: float = 0.0) -> float:
    """A number of 1 or more.

    Raises:
        ValueError: it is missing where `default` is 0, or something else.
    """
    found = number(options, name)
    if (default if found is None else found) < 1:
        raise UserError(f"its option {options.place}{name} is {found}: a number of 1 or more is expected")
    return default if found is None else found


def numbers(options: Options, name: str, default: tuple[float, ...]) -> tuple[float, ...]:
    """As many numbers as `default` has, from a list or the text of one, "(0.9, 0.98)".

    Raises:
        ValueError: it is something else.
    """
    given = option(options, name, default=list(default))
    found = _NUMBER.findall(given) if isinstance(given, str) else given
    try:
        values = tuple(float(one) for one in found)
    except (TypeError, ValueError):
        values = ()
    if len(values) != len(default):
        raise UserError(f"its option {options.place}{name} is {given!r}, where {len(default)} numbers are expected")
    return values


# ---- fairseq -----------------------------------------------------------------------------------------------------------


def fairseq_optimization(cfg: Options, **others: Any) -> Optimization:
    """The optimiser and schedule in a file of fairseq's (`fairseq/optim/{adam,composite}.py`, `lr_scheduler/*.py`).

    Args:
        cfg: all of the file's options. Of a composite optimiser the group "default" counts; other groups have no counterpart.
        others: arguments of `Optimization` that are not in these sections.

    Raises:
        ValueError: a section or a needed number is missing, or an optimiser, a schedule or an option has no counterpart.
    """
    optimizer, whole = section(cfg, "optimizer"), section(cfg, "optimization")
    if option(optimizer, "_name", default="") == "composite":
        groups = section(optimizer, "groups")
        if not groups:
            raise UserError("its composite optimiser has no groups, so what made it is not known")
        group = section(groups, "default" if "default" in groups else next(iter(groups)))
        optimizer, scheduler = section(group, "optimizer"), section(group, "lr_scheduler")
        own = number(group, "lr_float")
        lr = learning_rate(cfg, 0.0) if own is None else own
    else:
        scheduler, lr = section(cfg, "lr_scheduler"), learning_rate(cfg, 0.0)
    refuse_unknown(optimizer, {"_name": "adam"})
    decay = float(option(optimizer, "weight_decay", default=0.0))
    if lr <= 0:
        raise UserError(f"its learning rate is {lr:g}, so what made it is not known")
    return Optimization(
        lr=lr,
        betas=_two(numbers(optimizer, "adam_betas", (0.9, 0.999))),
        eps=float(option(optimizer, "adam_eps", default=1e-8)),
        weight_decay=decay,
        decay_all=decay > 0,  # also where a composite optimiser means to spare some: its look-up never matches
        **_fairseq_schedule(scheduler, whole, lr),
        **others,
    )


def _fairseq_schedule(scheduler: Options, whole: Options, lr: float) -> dict[str, Any]:
    """Arguments of `Optimization` for a section `lr_scheduler`."""
    name = str(option(scheduler, "_name", default=""))
    if name == "cosine":
        floor = float(option(scheduler, "min_lr", default=0.0))
        if (start := float(option(scheduler, "warmup_init_lr", default=-1.0))) not in (-1.0, floor):
            raise UserError(f"its warm-up starts at {start:g}: only min_lr, {floor:g}, has a counterpart here")
        warmup = int(option(scheduler, "warmup_updates", default=0))
        return {"schedule": "fairseq_cosine", "warmup": warmup, "final_lr": floor}
    if name == "tri_stage":
        refuse_unknown(scheduler, {"init_lr_scale": 0.01})
        if option(scheduler, "phase_ratio", default=None) is not None:
            warmup_share, hold, _ = numbers(scheduler, "phase_ratio", (0.0, 0.0, 0.0))
        else:
            total = needed(whole, "max_update")
            warmup_share, hold = (_part(needed(scheduler, f"{stage}_steps"), total) for stage in ("warmup", "hold"))
        floor = lr * float(option(scheduler, "final_lr_scale", default=0.01))
        return {"schedule": "tri_stage", "warmup": warmup_share, "hold": hold, "final_lr": floor}
    if name == "polynomial_decay":
        refuse_unknown(scheduler, {"power": 1.0, "force_anneal": None})
        steps = number(scheduler, "total_num_update")
        return {
            "schedule": "polynomial",
            "warmup": int(option(scheduler, "warmup_updates", default=0)),
            "final_lr": float(option(scheduler, "end_learning_rate", default=0.0)),
            "schedule_steps": int(needed(whole, "max_update") if steps is None else steps),
        }
    raise UserError(
        f"its schedule {scheduler.place}_name is {name!r}: cosine, tri_stage and polynomial_decay are known"
    )


def _part(steps: float, total: float) -> float:
    """Steps as a part of the run. `Optimization` cuts its product with the whole to a whole number: the same steps."""
    part = steps / total
    return part if int(part * total) >= steps else math.nextafter(part, math.inf)


def fairseq_batch(cfg: Options) -> Batch:
    """Batches of a file of fairseq's: those of all devices, and those that were accumulated.

    Raises:
        ValueError: it says neither samples nor tokens.
    """
    data = section(cfg, "dataset")
    samples, tokens = (number(data, name) for name in ("batch_size", "max_tokens"))
    if samples is None and tokens is None:
        raise UserError("its options dataset.batch_size and dataset.max_tokens are not set, so its batch is not known")
    given = option(cfg, "optimization.update_freq", default=[1])  # one number for each epoch, or one for all
    often = Options({"update_freq": given[0] if isinstance(given, list) and given else given}, place="optimization.")
    batches = needed(often, "update_freq")
    batches *= option(cfg, "distributed_training.distributed_world_size", default=1)
    many = [None if size is None else int(size) for size in (samples, tokens)]
    return Batch(many[0], many[1], int(batches))


def fairseq_trainer(cfg: Options) -> Tree:
    """Length, clipping and precision of a run, as settings of the Trainer.

    Raises:
        ValueError: the run has no length.
    """
    whole = section(cfg, "optimization")
    settings: Tree = {
        ours: int(value)
        for ours, theirs in (("max_epochs", "max_epoch"), ("max_steps", "max_update"))
        if (value := option(whole, theirs, default=0)) > 0
    }
    if not settings:
        raise UserError("its options optimization.max_update and max_epoch are not set: its run has no length")
    half = any(option(cfg, f"common.{name}", default=False) for name in ("fp16", "bf16", "amp"))
    settings["precision"] = PRECISION if half else "32-true"
    if (clip := float(option(whole, "clip_norm", default=0.0))) > 0:
        settings["gradient_clip_val"] = clip
    return settings


# ---- BEiT --------------------------------------------------------------------------------------------------------------


def beit_optimization(options: Options, **others: Any) -> Optimization:
    """The optimiser and schedule of BEiT's trainers (`run_cyclical.py`, `run_class_finetuning.py`).

    Raises:
        ValueError: a needed number is missing, or an option has no counterpart.
    """
    refuse_unknown(options, {"opt": "adamw", "tri_phase_schedule": None})
    decay = float(option(options, "weight_decay", default=0.05))
    if (end := number(options, "weight_decay_end")) not in (None, decay):
        raise UserError(f"its option weight_decay_end is {end!r}: only a constant weight decay has a counterpart here")
    warmup: float = int(option(options, "warmup_steps", default=-1))
    if warmup <= 0:
        warmup = needed(options, "warmup_epochs") / counted(options, "epochs")
        if warmup >= 1:  # which `Optimization` takes for steps
            raise UserError(f"its warm-up is {warmup:g} times its run: only a shorter one has a counterpart here")
    return Optimization(
        lr=needed(options, "lr"),
        betas=_two(numbers(options, "opt_betas", (0.9, 0.999))),
        eps=float(option(options, "opt_eps", default=1e-8)),
        weight_decay=decay,
        schedule="cosine",
        warmup=warmup,
        final_lr=needed(options, "min_lr"),
        **others,
    )


def beit_batch(options: Options) -> Batch:
    """Batches of a file of BEiT's trainers.

    Raises:
        ValueError: it does not say their size.
    """
    batches = int(option(options, "world_size", default=1)) * int(option(options, "update_freq", default=1))
    return Batch(int(needed(options, "batch_size")), None, batches)


def beit_trainer(options: Options) -> Tree:
    """Length, clipping and precision of a run, as settings of the Trainer."""
    settings: Tree = {"max_epochs": int(counted(options, "epochs")), "precision": PRECISION}
    if (clip := number(options, "clip_grad")) is not None:
        settings["gradient_clip_val"] = clip
    return settings


def _two(values: tuple[float, ...]) -> tuple[float, float]:
    return values[0], values[1]
