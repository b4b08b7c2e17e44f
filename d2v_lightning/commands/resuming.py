"""What the command line takes from a checkpoint, and what may differ from it when a run goes on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from d2v_lightning.checkpoints.model_differences import as_lists, describe_changes, differences
from d2v_lightning.checkpoints.own import RUN_KEY, is_trainer_setting, read_checkpoint, refuse_unfit, stored_settings
from d2v_lightning.checkpoints.stored_tokenizer import StoredTokenizer
from d2v_lightning.configurable import Tree, is_known, own_class, refuse_foreign
from d2v_lightning.flavour import pl, rank_zero_warn
from d2v_lightning.support.errors import UsageError, UserError, naming
from d2v_lightning.support.stored_form import as_mapping

_ORDER = frozenset({"batch_size", "effective_batch", "seed", "dataset", "root", "val_fraction", "task"})


class StoredRun:
    """The settings in a checkpoint, looked through: plain data that names no class but this project's.

    Args:
        path: a checkpoint of ours.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, from another project, or names a foreign class; nothing was run.
    """

    def __init__(self, path: str) -> None:
        # "meta": settings are wanted, not a second copy of the weights.
        checkpoint = read_checkpoint(path, map_location="meta")
        if not re.match(r"\d+\.\d+", str(version := checkpoint.get("pytorch-lightning_version"))):
            raise UserError(
                f"{path}: pytorch-lightning_version is {str(version)[:60]!r}, so Lightning cannot restore it"
            )
        self.path = path
        model = checkpoint.get("hyper_parameters")
        if not isinstance(model, dict) or "class_path" not in model:
            raise UserError(f"{path} does not say which model it holds: it was not written by this project's modules")
        with naming(path):
            refuse_foreign(model)
        state = as_mapping(checkpoint["state_dict"], f"{path}: state_dict")
        weights = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        refuse_unfit(model, own_class(model["class_path"]), weights, path)
        self.model: Tree = model
        run = stored_settings(checkpoint.get(RUN_KEY), path, RUN_KEY)
        data = stored_settings(run.get("data"), path, f"{RUN_KEY}.data") or None
        if data is not None:
            with naming(path):
                refuse_foreign(data)
            if not {"class_path", "init_args"} <= set(data):
                raise UserError(f"{path}: {RUN_KEY}.data is not whole: it lacks the class or its arguments")
        self.data: Tree | None = data
        self.step = checkpoint.get("global_step", 0)
        self.tokenizer: StoredTokenizer | None = checkpoint["d2v_lightning"].get("tokenizer")
        self.trainer: dict[str, Any] = {
            name: value
            for name, value in stored_settings(run.get("trainer"), path, f"{RUN_KEY}.trainer").items()
            if is_trainer_setting(name, value)
        }

    @property
    def data_alone(self) -> Tree | None:
        """Settings of the data with the tokenizer that is in the file, not the directory that it came from."""
        if self.data is None or self.tokenizer is None or "tokenizer" not in self.data["init_args"]:
            return self.data
        return {**self.data, "init_args": {**self.data["init_args"], "tokenizer": None}}

    @property
    def run_folder(self) -> Path:
        """The folder of the run that wrote the file."""
        folder = Path(self.path).resolve().parent
        return folder.parent if folder.name == "checkpoints" else folder


class StoreRun(pl.Callback):
    """Puts the run's data and trainer settings into its checkpoints, as plain data.

    Args:
        data: tree of the datamodule; None, or a class that is not this project's, is not stored.
        trainer: settings of the Trainer.
    """

    def __init__(self, data: Tree | None, trainer: dict[str, Any]) -> None:
        self.run = {
            "data": data if data is not None and is_known(data) else None,
            "trainer": {name: value for name, value in trainer.items() if is_trainer_setting(name, value)},
        }

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[RUN_KEY] = self.run


def changed_settings(now: dict[str, Any], stored: dict[str, Any], prefix: str) -> tuple[list[str], bool]:
    """Settings that differ, in words, and whether they change which samples come when."""
    names = [name for name in dict.fromkeys([*now, *stored]) if as_lists(now.get(name)) != as_lists(stored.get(name))]
    words = [f"{prefix}.{name} {stored.get(name)!r} -> {now.get(name)!r}" for name in names]
    return words, bool(_ORDER & set(names))


def compare(module: pl.LightningModule, settings: dict[str, Any], stored: StoredRun, goes_on: bool) -> None:
    """Refuse to go on with another model; say what else has changed.

    Args:
        module: of this run.
        settings: of this run, as plain data.
        stored: what the checkpoint says.
        goes_on: the run trains on, and does not only test or predict.

    Raises:
        UsageError: the model is another one, or none of ours.
    """
    now = getattr(module, "config", None)
    if now is None:
        raise UsageError(f"{type(module).__name__} is not a module of d2v_lightning, {stored.path} holds one")
    changes = list(differences(now, stored.model, "model"))
    if changes and (goes_on or changes[0][0] == "model"):
        raise UsageError(
            f"{stored.path} holds another model: {describe_changes(changes)}. Leave --model and the model section of "
            "--config out to take it from the checkpoint, or start a new run without --ckpt_path"
        )
    if changes:
        rank_zero_warn(f"the command line's model is used, not that of {stored.path}: {describe_changes(changes)}")
    if goes_on:
        _say_changed_settings(settings, stored)


def _say_changed_settings(settings: dict[str, Any], stored: StoredRun) -> None:
    words: list[str] = []
    reorders = False
    data = settings.get("data")
    if data and stored.data and data["class_path"] == stored.data["class_path"]:
        mine, theirs = data["init_args"], dict(stored.data["init_args"])
        if "tokenizer" in mine and stored.tokenizer is not None:  # compared by what it does, wherever it lies
            theirs["tokenizer"] = mine.get("tokenizer")
        words, reorders = changed_settings(mine, theirs, "data")
    now = {name: settings["trainer"].get(name) for name in stored.trainer}
    words += changed_settings(now, stored.trainer, "trainer")[0]
    if words:
        order = ". The rest of the run sees other samples, or in another order, than it would have" if reorders else ""
        rank_zero_warn(f"going on from {stored.path} with changed settings: {', '.join(words)}{order}")
