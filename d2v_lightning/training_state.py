"""What a checkpoint holds beside weights, compared with the run that is to go on from it before anything is restored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from d2v_lightning.errors import UserError
from d2v_lightning.tensor_files import REAL


def checkpoint_name(module: nn.Module) -> str:
    """What messages call the file that a module's Trainer restores."""
    trainer = module._trainer if isinstance(module, LightningModule) else None
    return str(getattr(trainer, "ckpt_path", None) or "this checkpoint")


def refuse_training_state(checkpoint: dict[str, Any], module: LightningModule, name: str) -> None:
    """Look through the states of callbacks, loops, optimisers and schedules.

    Args:
        checkpoint: as Lightning gives it to `on_load_checkpoint`.
        module: attached to a Trainer that is about to restore it.
        name: what messages call the file.

    Raises:
        ValueError: a part is missing that the Trainer needs to go on, or is of another form than Lightning writes.
    """
    _refuse_callbacks(checkpoint.get("callbacks", {}), module.trainer, f"{name}: callbacks")
    loops = _mapping(checkpoint.get("loops", {}), f"{name}: loops")
    if module.trainer.state.fn != "fit":
        return
    missing = [part for part in ("loops", "optimizer_states", "lr_schedulers") if part not in checkpoint]
    if missing:
        raise UserError(
            f"{name} has no {missing[0]}, so that no run can go on from it: start from its weights with --model.checkpoint"
        )
    _compare(loops.get("fit_loop"), module.trainer.fit_loop.state_dict(), f"{name}: loops.fit_loop")
    batches = f"{name}: loops.fit_loop.epoch_loop.state_dict._batches_that_stepped"
    _compare(loops["fit_loop"].get("epoch_loop.state_dict", {}).get("_batches_that_stepped", 0), 0, batches)
    loaders = f"{name}: loops.fit_loop.state_dict.combined_loader"
    for place, state in enumerate(_list(loops["fit_loop"].get("state_dict", {}).get("combined_loader", []), loaders)):
        _mapping(state, f"{loaders}.{place}")
    ours = type(module).configure_optimizers.__module__.startswith("d2v_lightning.")
    for part in ("optimizer_states", "lr_schedulers"):
        states = _list(checkpoint[part], f"{name}: {part}")
        if ours and len(states) != 1:  # Lightning would leave the optimiser as it is
            raise UserError(f"{name}: {part} holds {len(states)} states, where one is expected")
        for place, state in enumerate(states):
            _mapping(state, f"{name}: {part}.{place}")


def _refuse_callbacks(states: Any, trainer: Trainer, key: str) -> None:
    forms = {
        callback.state_key: callback.state_dict()
        for callback in trainer.callbacks  # type: ignore[attr-defined]  # a property of Lightning's that mypy does not see
        if type(callback).__module__.partition(".")[0] in ("pytorch_lightning", "d2v_lightning")
    }
    for name, state in _mapping(states, key).items():
        _compare(_mapping(state, f"{key}.{name}"), forms.get(name, {}), f"{key}.{name}")
        for path in _paths(state):
            if ".." in Path(path).parts:  # ModelCheckpoint deletes files that its state names, in its folder only
                raise UserError(f"{key}.{name} names {path[:200]!r}, which may lead out of the folder of the run")


def _paths(state: Mapping[Any, Any]) -> Iterator[str]:
    """Files that a callback's state names."""
    for name, value in state.items():
        if isinstance(value, str) and str(name).endswith("path"):
            yield value
        elif name == "best_k_models":
            yield from map(str, value)


def refuse_optimizer_state(optimizer: Optimizer, state: Mapping[str, Any], name: str) -> None:
    """Compare a stored state with the optimiser that is to take it over.

    Raises:
        ValueError: it has other groups or other numbers of parameters; or one of its values is no number, no tensor of
            finite real numbers, or of another shape than its parameter.
    """
    groups = [
        _mapping(group, f"{name}: param_groups") for group in _list(state.get("param_groups"), f"{name}: param_groups")
    ]
    numbers = [_list(group.get("params"), f"{name}: params of a group") for group in groups]
    if odd := [number for some in numbers for number in some if type(number) is not int]:
        raise UserError(
            f"{name}: params of a group holds {_short(odd[0])}, where the number of a parameter is expected"
        )
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    if [len(some) for some in numbers] != sizes:
        raise UserError(
            f"{name}: it has groups of {', '.join(str(len(some)) for some in numbers)} parameters, this run has groups of "
            f"{', '.join(map(str, sizes))}: what is trained must be as it was"
        )
    for group, own in zip(groups, optimizer.param_groups, strict=True):
        for key, value in own.items():
            if key in group and key not in ("params", "fused") and isinstance(value, (int, float, tuple)):
                _compare(group[key], value, f"{name}: param_groups.{key}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    by_number = dict(zip((number for some in numbers for number in some), parameters, strict=True))
    states = _mapping(state.get("state"), f"{name}: state")
    wanted = set().union(*(values for values in states.values() if isinstance(values, Mapping)))
    for number, values in states.items():
        if number not in by_number:
            raise UserError(f"{name}: it has a state for parameter {_short(number)}, which is in none of its groups")
        if missing := wanted - set(_mapping(values, f"{name}: state.{number}")):
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
        raise UserError(f"{key} is {_short(value)}, where numbers are expected")


class CheckedLambdaLR(LambdaLR):
    """`LambdaLR` with one function for all groups, which refuses a stored state of another form.

    A parameter group that is added in the run, as `BackboneFinetuning` does, follows the schedule in proportion. It starts
    from the rate that it has, or from one that somebody sets.

    Args:
        module: what is trained; its Trainer knows the file that messages name.
    """

    def __init__(self, optimizer: Optimizer, lr_lambda: Any, module: nn.Module) -> None:
        self._name: Callable[[], str] = lambda: checkpoint_name(module)
        super().__init__(optimizer, lr_lambda)

    def get_lr(self) -> list[Any]:
        known, factor = len(self.lr_lambdas), self.lr_lambdas[0]
        rates: list[Any] = [base * factor(self.last_epoch) for base in self.base_lrs[:known]]
        for group in self.optimizer.param_groups[known:]:
            before = factor(self.last_epoch - 1)
            rates.append(group["lr"] * (factor(self.last_epoch) / before if before else 1.0))
        return rates

    def state_dict(self) -> dict[str, Any]:
        return {key: value for key, value in super().state_dict().items() if key != "_name"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        form = {key: value for key, value in self.state_dict().items() if not key.startswith("_")}
        form |= {"_last_lr": [group["lr"] for group in self.optimizer.param_groups], "_step_count": 0}
        _compare(state_dict, form, f"{self._name()}: lr_schedulers.0")
        super().load_state_dict(state_dict)
        # Lightning's callbacks freeze again what the stopped run had unfrozen, and bring back the groups alone.
        for group in self.optimizer.param_groups[len(self.lr_lambdas) :]:
            for parameter in group["params"]:
                parameter.requires_grad_(True)


def _compare(found: Any, form: Any, key: str) -> None:
    """A tree of plain data against one of the form that is expected. What is below a "state_dict" is another's to check."""
    if isinstance(form, Mapping):
        found = _mapping(found, key)
        for name, below in form.items():
            if str(name).rpartition(".")[2] == "state_dict":
                _mapping(found.get(name, {}), f"{key}.{name}")
            elif name in found:
                _compare(found[name], below, f"{key}.{name}")
            else:
                raise UserError(f"{key} has no {name}: it was not written by this project")
    elif isinstance(form, (list, tuple)):
        if not isinstance(found, (list, tuple)) or len(found) != len(form):
            raise UserError(f"{key} is {_short(found)}, where {len(form)} values are expected")
        for place, below in enumerate(form):
            _compare(found[place], below, f"{key}.{place}")
    elif isinstance(form, bool):
        if not isinstance(found, bool):
            raise UserError(f"{key} is {_short(found)}, where true or false is expected")
    elif isinstance(form, str):
        if not isinstance(found, str):
            raise UserError(f"{key} is {_short(found)}, where text is expected")
    elif isinstance(form, int):
        if not isinstance(found, int) or isinstance(found, bool) or found < 0:
            raise UserError(f"{key} is {_short(found)}, where a count is expected")
    elif isinstance(form, float) and not _is_number(found):
        raise UserError(f"{key} is {_short(found)}, where a number is expected")


def _mapping(value: Any, key: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{key} is {_short(value)}, where names and values are expected")
    return value


def _list(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list):
        raise UserError(f"{key} is {_short(value)}, where a list is expected")
    return value


def _short(value: Any) -> str:
    plain = value is None or isinstance(value, (bool, int, float, str))
    return repr(value)[:60] if plain else f"of type {type(value).__name__}"


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and value.dtype in REAL and bool(torch.isfinite(value))
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value - value == 0
