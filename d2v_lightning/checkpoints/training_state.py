"""What a checkpoint holds beside weights, compared with the run that is to go on from it before anything is restored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from d2v_lightning.flavour import pl
from d2v_lightning.support.errors import UserError
from d2v_lightning.support.stored_form import as_list, as_mapping, compare_form


def refuse_training_state(checkpoint: dict[str, Any], module: pl.LightningModule, name: str) -> None:
    """Look through the states of callbacks, loops, optimisers and schedules.

    Args:
        checkpoint: as Lightning gives it to `on_load_checkpoint`.
        module: attached to a Trainer that is about to restore it.
        name: what messages call the file.

    Raises:
        ValueError: a part is missing that the Trainer needs to go on, or is of another form than Lightning writes.
    """
    _refuse_callbacks(checkpoint.get("callbacks", {}), module.trainer, f"{name}: callbacks")
    loops = as_mapping(checkpoint.get("loops", {}), f"{name}: loops")
    if module.trainer.state.fn != "fit":
        return
    missing = [part for part in ("loops", "optimizer_states", "lr_schedulers") if part not in checkpoint]
    if missing:
        raise UserError(
            f"{name} has no {missing[0]}, so that no run can go on from it: start from its weights with --model.checkpoint"
        )
    compare_form(loops.get("fit_loop"), module.trainer.fit_loop.state_dict(), f"{name}: loops.fit_loop")
    batches = f"{name}: loops.fit_loop.epoch_loop.state_dict._batches_that_stepped"
    compare_form(loops["fit_loop"].get("epoch_loop.state_dict", {}).get("_batches_that_stepped", 0), 0, batches)
    loaders = f"{name}: loops.fit_loop.state_dict.combined_loader"
    for place, state in enumerate(as_list(loops["fit_loop"].get("state_dict", {}).get("combined_loader", []), loaders)):
        as_mapping(state, f"{loaders}.{place}")
    ours = type(module).configure_optimizers.__module__.startswith("d2v_lightning.")
    for part in ("optimizer_states", "lr_schedulers"):
        states = as_list(checkpoint[part], f"{name}: {part}")
        if ours and len(states) != 1:  # Lightning would leave the optimiser as it is
            raise UserError(f"{name}: {part} holds {len(states)} states, where one is expected")
        for place, state in enumerate(states):
            as_mapping(state, f"{name}: {part}.{place}")


def _refuse_callbacks(states: Any, trainer: pl.Trainer, key: str) -> None:
    forms = {
        callback.state_key: callback.state_dict()
        for callback in trainer.callbacks  # type: ignore[attr-defined]  # a property of Lightning's that mypy does not see
        if type(callback).__module__.partition(".")[0] in (pl.__name__.partition(".")[0], "d2v_lightning")
    }
    for name, state in as_mapping(states, key).items():
        compare_form(as_mapping(state, f"{key}.{name}"), forms.get(name, {}), f"{key}.{name}")
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
