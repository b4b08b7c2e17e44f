"""The state of an optimiser and its schedule in a file, compared with those that are to take it over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from d2v_lightning.flavour import pl
from d2v_lightning.support.errors import UserError
from d2v_lightning.support.stored_form import as_list, as_mapping, compare_form, short
from d2v_lightning.support.tensor_files import REAL


def checkpoint_name(module: nn.Module) -> str:
    """What messages call the file that a module's Trainer restores."""
    trainer = module._trainer if isinstance(module, pl.LightningModule) else None
    return str(getattr(trainer, "ckpt_path", None) or "this checkpoint")


def refuse_optimizer_state(optimizer: Optimizer, state: Mapping[str, Any], name: str) -> None:
    """Compare a stored state with the optimiser that is to take it over.

    Raises:
        ValueError: it has other groups or other numbers of parameters; or one of its values is no number, no tensor of
            finite real numbers, or of another shape than its parameter.
    """
    groups = [
        as_mapping(group, f"{name}: param_groups")
        for group in as_list(state.get("param_groups"), f"{name}: param_groups")
    ]
    numbers = [as_list(group.get("params"), f"{name}: params of a group") for group in groups]
    if odd := [number for some in numbers for number in some if type(number) is not int]:
        raise UserError(f"{name}: params of a group holds {short(odd[0])}, where the number of a parameter is expected")
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    if [len(some) for some in numbers] != sizes:
        raise UserError(
            f"{name}: it has groups of {', '.join(str(len(some)) for some in numbers)} parameters, this run has groups of "
            f"{', '.join(map(str, sizes))}: what is trained must be as it was"
        )
    for group, own in zip(groups, optimizer.param_groups, strict=True):
        for key, value in own.items():
            if key in group and key not in ("params", "fused") and isinstance(value, (int, float, tuple)):
                compare_form(group[key], value, f"{name}: param_groups.{key}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    by_number = dict(zip((number for some in numbers for number in some), parameters, strict=True))
    states = as_mapping(state.get("state"), f"{name}: state")
    wanted = set().union(*(values for values in states.values() if isinstance(values, Mapping)))
    for number, values in states.items():
        if number not in by_number:
            raise UserError(f"{name}: it has a state for parameter {short(number)}, which is in none of its groups")
        if missing := wanted - set(as_mapping(values, f"{name}: state.{number}")):
            raise UserError(f"{name}: state.{number} has no {min(missing, key=str)}, which other parameters have")
        for key, value in values.items():
            _refuse_moment(value, by_number[number], f"{name}: state.{number}.{key}")


def _refuse_moment(value: Any, parameter: Tensor, key: str) -> None:
    if isinstance(value, Tensor):
        if value.dtype not in REAL or value.layout is not torch.strided or value.is_meta:
            raise UserError(f"{key} holds {value.dtype}, where real numbers are expected")
        if value.shape != parameter.shape and not (key.endswith(".step") and value.numel() == 1):
            raise UserError(f"{key} has shape {tuple(value.shape)}, its parameter {tuple(parameter.shape)}")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise UserError(f"{key} has shape {tuple(value.shape)} and fewer numbers than that")
        if not torch.isfinite(value).all():
            raise UserError(f"{key} holds NaN or infinity")
    elif value is not None and not isinstance(value, (bool, int, float)):
        raise UserError(f"{key} is {short(value)}, where numbers are expected")


class CheckedLambdaLR(LambdaLR):
    """`LambdaLR` that refuses a stored state of another form.

    A parameter group that is added in the run, as `BackboneFinetuning` does, follows the first group's schedule in
    proportion. It starts from the rate that it has, or from one that somebody sets.

    Args:
        lr_lambda: step -> rate as a part of the peak, one function or one for each group.
        module: what is trained; its Trainer knows the file that messages name.
    """

    def __init__(self, optimizer: Optimizer, lr_lambda: Any, module: nn.Module) -> None:
        self._name: Callable[[], str] = lambda: checkpoint_name(module)
        super().__init__(optimizer, lr_lambda)

    def get_lr(self) -> list[Any]:
        known, factor = len(self.lr_lambdas), self.lr_lambdas[0]
        own = zip(self.base_lrs[:known], self.lr_lambdas, strict=True)
        rates: list[Any] = [base * part(self.last_epoch) for base, part in own]
        for group in self.optimizer.param_groups[known:]:
            before = factor(self.last_epoch - 1)
            rates.append(group["lr"] * (factor(self.last_epoch) / before if before else 1.0))
        return rates

    def state_dict(self) -> dict[str, Any]:
        return {key: value for key, value in super().state_dict().items() if key != "_name"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        form = {key: value for key, value in self.state_dict().items() if not key.startswith("_")}
        form |= {"_last_lr": [group["lr"] for group in self.optimizer.param_groups], "_step_count": 0}
        compare_form(state_dict, form, f"{self._name()}: lr_schedulers.0")
        super().load_state_dict(state_dict)
        # Lightning's callbacks freeze again what the stopped run had unfrozen, and bring back the groups alone.
        for group in self.optimizer.param_groups[len(self.lr_lambdas) :]:
            for parameter in group["params"]:
                parameter.requires_grad_(True)
