"""Learning rates as pure functions of the optimiser step, counted from 0: the rate with which update `step` + 1 is made."""

from __future__ import annotations

import math


def cosine(
    step: int, total: int, peak: float, warmup: int, floor: float = 0.0, init: float = 0.0, inclusive: bool = False
) -> float:
    """Linear warm-up from `init` to `peak`, then half a cosine down to `floor`.

    Args:
        inclusive: the last warm-up step is already at the peak (BEiT and data2vec 1.0 images); otherwise the step after it
            is (fairseq: 1.0 text, all of 2.0, where `init` is `floor` unless `warmup_init_lr` says otherwise).
    """
    if step < warmup:
        return init + (peak - init) * step / max(1, warmup - inclusive)
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + 0.5 * (peak - floor) * (1.0 + math.cos(math.pi * progress))


def tri_stage(
    step: int, peak: float, warmup: int, hold: int, decay: int, init_scale: float = 0.01, final_scale: float = 0.01
) -> float:
    """Linear warm-up from `init_scale` x peak, hold, exponential decay to `final_scale` x peak (speech)."""
    if step < warmup:
        return peak * (init_scale + (1.0 - init_scale) * step / max(1, warmup))
    if step < warmup + hold:
        return peak
    progress = min(1.0, (step - warmup - hold) / max(1, decay))
    return peak * math.exp(math.log(final_scale) * progress)


def polynomial(step: int, total: int, peak: float, warmup: int, end: float = 0.0, power: float = 1.0) -> float:
    """Linear warm-up from 0, then (1 - progress) ** power down to `end` (GLUE)."""
    if step < warmup:
        return peak * step / warmup
    if step >= total:
        return end
    remaining: float = 1.0 - (step - warmup) / (total - warmup)
    return end + (peak - end) * math.pow(remaining, power)
