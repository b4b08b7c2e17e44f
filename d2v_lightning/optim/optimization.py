"""AdamW with the recipes' parameter groups (no decay, layer-wise rates) and learning-rate schedule."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import nn

from d2v_lightning.configurable import Configurable
from d2v_lightning.flavour import pl
from d2v_lightning.optim import schedules
from d2v_lightning.optim.stored_optimizer import CheckedLambdaLR, checkpoint_name, refuse_optimizer_state
from d2v_lightning.support.errors import UserError

Schedule = Literal["cosine", "fairseq_cosine", "tri_stage", "polynomial", "constant"]


class Optimization(Configurable):
    """AdamW and its schedule, as data.

    The defaults are data2vec 1.0 for images, Base (configs/pretrain/image_base.yaml).

    Args:
        lr: peak learning rate for the published batch.
        betas, eps, weight_decay: as in `torch.optim.AdamW`. What fairseq calls Adam decays decoupled, so it is AdamW too.
        decay_all: apply weight decay to every parameter, as all of Meta's fairseq code does (1.0 speech and text, 2.0, GLUE);
            otherwise biases, norms, other 1-D parameters, the class token and learned positions are spared (1.0 images).
        layer_decay: each block's rate is this times the next one's, counted from the head down; None for none.
        encoder_decays: under `layer_decay` the encoder's rate is again this times the lowest block's (1.0, BEiT); otherwise
            the encoder keeps the full rate (2.0 images, whose class token and patch embedding are no blocks).
        schedule: "cosine" (1.0 images), "fairseq_cosine" (1.0 text, 2.0), "tri_stage" (speech), "polynomial" (GLUE), or
            "constant". BEiT's cosine warms up from 0, and its last warm-up step is at the peak. fairseq's warms up from
            `final_lr`, and the step after the warm-up is at the peak. See `factor` for layers with rates of their own.
        warmup: optimiser steps where a whole number, part of the whole run where below 1 (10 of 800 epochs is .0125).
        schedule_steps: optimiser steps that the schedule spans, by default the whole run. A shorter run ends at a
            higher rate (released GLUE: RTE), a longer one stays at the last.
        final_lr: rate at the end, in the same unit as `lr`.
        hold: for "tri_stage", part of the run at the peak.
    """

    def __init__(
        self,
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.05,
        decay_all: bool = False,
        layer_decay: float | None = None,
        encoder_decays: bool = True,
        schedule: Schedule = "cosine",
        warmup: float = 0.0125,
        final_lr: float = 1e-5,
        hold: float = 0.9,
        schedule_steps: int | None = None,
    ) -> None:
        for name, value in (
            ("lr", lr),
            ("eps", eps),
            ("weight_decay", weight_decay),
            ("warmup", warmup),
            ("final_lr", final_lr),
        ):
            if value < 0:
                raise UserError(f"{name} is {value}: it must not be negative")
        if not 0.0 <= hold <= 1.0:
            raise UserError(f"hold is {hold}: it is a part of the run, from 0 to 1")
        if schedule == "tri_stage" and final_lr == 0 < lr:
            raise UserError(
                "final_lr is 0: 'tri_stage' falls by equal factors and never gets there, give a rate above 0"
            )
        if schedule != "constant" and final_lr > lr > 0:
            raise UserError(
                f"final_lr is {final_lr:g}, above lr {lr:g}: the rate would rise, give a final_lr of at most lr"
            )
        if len(betas) != 2 or not all(0.0 <= beta < 1.0 for beta in betas):
            raise UserError(f"betas is {tuple(betas)}: two numbers from 0 to below 1 are needed")
        if layer_decay is not None and not 0 < layer_decay <= 1:
            raise UserError(f"layer_decay is {layer_decay}: it must lie in (0, 1]")
        if schedule not in get_args(Schedule):
            raise UserError(f"schedule is {schedule!r}: choose from {', '.join(get_args(Schedule))}")
        if schedule_steps is not None and schedule_steps < 1:
            raise UserError(f"schedule_steps is {schedule_steps}: it must be 1 or more")
        self.lr, self.betas, self.eps, self.weight_decay = lr, (betas[0], betas[1]), eps, weight_decay
        self.decay_all, self.layer_decay, self.encoder_decays = decay_all, layer_decay, encoder_decays
        self.schedule, self.warmup, self.final_lr, self.hold = schedule, warmup, final_lr, hold
        self.schedule_steps = schedule_steps

    def configure(self, module: nn.Module, total_steps: float) -> dict[str, Any]:
        """What `configure_optimizers` returns, for a run of `total_steps` optimiser steps, see `run_length`.

        Frozen parameters stay out.

        Raises:
            ValueError: the warm-up, or warm-up and hold, are longer than the run; the schedule needs a length that the run
                does not have; or what is frozen is to be trained later on several devices.
        """
        _refuse_to_unfreeze_on_several_devices(module)
        groups = self.parameter_groups(module)
        fused = all(parameter.device.type in ("cpu", "cuda") for group in groups for parameter in group["params"])
        optimizer = torch.optim.AdamW(
            groups, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, fused=fused or None
        )
        # A fused AdamW offers to unscale fp16 gradients by itself; Lightning then refuses to clip them, in bf16 as well.
        # Without the offer gradients are unscaled, clipped and checked before the step, as those of any optimiser.
        optimizer._step_supports_amp_scaling = False

        def keep_kernel(_: Any, state: dict[str, Any]) -> dict[str, Any]:
            """A checkpoint would bring the kernel of the device that it was written on."""
            refuse_optimizer_state(optimizer, state, f"{checkpoint_name(module)}: optimizer_states.0")
            return {**state, "param_groups": [{**group, "fused": fused or None} for group in state["param_groups"]]}

        optimizer.register_load_state_dict_pre_hook(keep_kernel)
        scheduler = CheckedLambdaLR(optimizer, [self.factor(total_steps, group["lr"]) for group in groups], module)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "train/lr"},
        }

    def factor(self, total_steps: float, peak: float | None = None) -> Callable[[int], float]:
        """Step -> learning rate as a part of the peak.

        Args:
            total_steps: see `configure`.
            peak: peak rate of the layer, under `layer_decay`; None for `lr`. BEiT's cosine and "tri_stage" scale a layer's
                whole schedule. fairseq's cosine and "polynomial" end at the same `final_lr` in every layer: `composite.py`
                hands each group a `lr` of its own, and `min_lr` of `cosine_lr_scheduler.py` is one for all.
        """
        if self.schedule_steps is not None and total_steps >= 1:
            total_steps = self.schedule_steps
        if math.isinf(total_steps):
            if self.schedule != "constant" or 0 < self.warmup < 1:
                raise UserError(
                    f"the run has no length, which schedule {self.schedule!r} with warmup {self.warmup:g} needs: set "
                    "trainer.max_steps or trainer.max_epochs (trainer.max_time may end the run before), or schedule to "
                    "'constant' and warmup to a number of steps"
                )
        elif total_steps < 1:  # a run that only builds everything
            return lambda step: 0.0
        warmup = int(self.warmup * total_steps) if 0 < self.warmup < 1 else int(self.warmup)
        if warmup > total_steps:
            whole = "run" if self.schedule_steps is None else "schedule (schedule_steps)"
            raise UserError(
                f"warmup is {warmup} steps, the whole {whole} has {total_steps}: give it as a part of the run "
                "(optimization.warmup: 0.05) or train longer"
            )
        if self.lr == 0:
            return lambda step: 0.0
        floor = self.final_lr / self.lr
        own_floor = min(1.0, self.final_lr / (peak or self.lr))
        if self.schedule == "cosine":
            return lambda step: schedules.cosine(step, int(total_steps), 1.0, warmup, floor=floor, inclusive=True)
        if self.schedule == "fairseq_cosine":
            return lambda step: schedules.cosine(step, int(total_steps), 1.0, warmup, floor=own_floor, init=own_floor)
        if self.schedule == "tri_stage":
            hold = int(self.hold * total_steps)
            decay = int(total_steps) - warmup - hold
            if decay < 0:
                raise UserError(
                    f"warmup is {warmup} steps and hold {hold}, the whole schedule has {total_steps:g}: both have to fit "
                    "into it"
                )
            return lambda step: schedules.tri_stage(step, 1.0, warmup, hold, decay, final_scale=floor)
        if self.schedule == "polynomial":
            return lambda step: schedules.polynomial(step, int(total_steps), 1.0, warmup, end=own_floor)
        return lambda step: min(1.0, (step + 1) / max(1, warmup))

    def parameter_groups(self, module: nn.Module) -> list[dict[str, Any]]:
        """Trainable parameters by (rate, decay), each group with `params`, `lr`, `weight_decay` and a readable `name`."""
        depth = max((layer_id(name, 0) for name, _ in module.named_parameters() if "blocks." in name), default=0)
        groups: dict[tuple[float, bool], dict[str, Any]] = {}
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            scale = self._rate(layer_id(name, depth), depth)
            decays = self.decay_all or decays_weight(name, parameter)
            group = groups.setdefault(
                (scale, decays),
                {
                    "params": [],
                    "lr": self.lr * scale,
                    "weight_decay": self.weight_decay if decays else 0.0,
                    "name": f"x{scale:.3g}_{'decay' if decays else 'no_decay'}",
                },
            )
            group["params"].append(parameter)
        return list(groups.values())

    def _rate(self, layer: int, depth: int) -> float:
        """Rate of a layer, see `layer_id`, as a part of the head's."""
        if self.layer_decay is None or (layer == 0 and not self.encoder_decays):
            return 1.0
        return self.layer_decay ** (depth + 1 - layer)


def run_length(trainer: pl.Trainer) -> float:
    """Optimiser steps of a whole run, however much of it a checkpoint has behind it.

    Returns:
        Infinity where neither `max_steps` nor `max_epochs` ends the run, or the data does not say how long an epoch is.
    """
    if trainer.limit_train_batches == 0:
        return 0
    steps = trainer.estimated_stepping_batches  # -1: epochs of unknown length
    return math.inf if steps == -1 else steps


def _refuse_to_unfreeze_on_several_devices(module: nn.Module) -> None:
    """DDP averages gradients of what is trainable when a run begins, and of nothing else: ranks would drift apart."""
    trainer: Any = getattr(module, "_trainer", None)
    if trainer is None or trainer.world_size == 1:
        return
    if freezing := [type(one).__name__ for one in trainer.callbacks if isinstance(one, pl.callbacks.BaseFinetuning)]:
        raise UserError(
            f"{freezing[0]} on {trainer.world_size} devices: gradients of what it unfreezes would not be averaged over them. "
            "Use one device, or train the head alone first (freeze_backbone) and start a second run from its checkpoint"
        )


def decays_weight(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay is meant for a parameter: not for vectors, biases, the class token, learned positions of
    images, and ALiBi scales."""
    spared = parameter.ndim <= 1 or name.endswith(("bias", "class_token", "position.embedding", "position_bias.scale"))
    return not spared


def layer_id(name: str, depth: int) -> int:
    """Place of a parameter in layer-wise decay (BEiT): 0 for the encoder, 1 to `depth` for the blocks, `depth` + 1 above.

    The shared relative-position table counts as "above", so that it keeps the full rate, as in the released fine-tuning.
    """
    if re.search(r"(?:^|\.)encoder\.", name):
        return 0
    block = re.search(r"(?:^|\.)(?:blocks|block_tables)\.(\d+)(?:\.|$)", name)
    return int(block[1]) + 1 if block else depth + 1
