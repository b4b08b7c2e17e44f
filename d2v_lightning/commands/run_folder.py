"""The folder of a run: which it is, its configuration, and that it holds one run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from d2v_lightning.commands.resuming import StoredRun
from d2v_lightning.commands.settings import Source
from d2v_lightning.flavour import pl, rank_zero_info
from d2v_lightning.support.atomic import UNFINISHED, atomic_write, remove
from d2v_lightning.support.errors import UsageError
from d2v_lightning.support.locks import only_one_in

CONFIG_NAME = "config.yaml"


class SaveConfig(pl.cli.SaveConfigCallback):
    """Writes the configuration to the run's folder, and gives it to the loggers as hyper-parameters.

    A run that goes on in its folder leaves the first configuration as it is and adds its own beside it.

    Args:
        settings: the configuration as plain data.
    """

    def __init__(self, parser: pl.cli.LightningArgumentParser, config: Namespace, settings: dict[str, Any]) -> None:
        super().__init__(parser, config, save_to_log_dir=False)
        self.settings = settings

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        path, resumes = folder / CONFIG_NAME, 0
        while path.exists():
            resumes += 1
            path = folder / f"config_resumed_{resumes}.yaml"
        with atomic_write(path) as unfinished:
            unfinished.write_text(yaml.safe_dump(self.settings, sort_keys=False, allow_unicode=True), encoding="utf-8")
        settings = {"model": getattr(pl_module, "config", self.settings["model"]), "data": self.settings["data"]}
        for logger in trainer.loggers:
            logger.log_hyperparams(settings)


def default_folder(subcommand: str, configs: Sequence[Source], stored: StoredRun | None) -> Path:
    """The folder where none is given: that of a checkpoint, or one named after the first configuration."""
    if stored is not None and not (subcommand == "fit" and configs):
        return stored.run_folder
    if subcommand != "fit":
        return Path.cwd()
    return Path("runs", Path(configs[0].name).stem if configs else "data2vec")


def last_checkpoint(checkpoints: Path) -> Path | None:
    """The checkpoint in a folder that a run goes on from; None where it starts from the beginning. Both are said."""
    last = checkpoints / "last.ckpt"
    others = sorted(checkpoints.glob("*.ckpt"), key=os.path.getmtime) if not os.path.lexists(last) else []
    if others:  # killed after the first checkpoint of a run, before last.ckpt was written beside it
        rank_zero_info(f"no checkpoint at {last} yet: the run goes on from {others[-1]}")
        last = others[-1]
    if last.is_file():
        return last
    rank_zero_info(f"no checkpoint at {last} yet: the run starts from the beginning")
    return None


def refuse_other_run(folder: Path, checkpoints: Path, stored: StoredRun | None, sent_again: bool) -> None:
    """Refuse a folder that holds a run which this one does not go on.

    Args:
        folder: of this run.
        checkpoints: where its checkpoints go.
        stored: the checkpoint that this run goes on from.
        sent_again: the command goes on if there is a checkpoint.

    Raises:
        UsageError: it does.
    """
    saved = any(checkpoints.glob("*.ckpt"))
    if not saved and (sent_again or not (folder / CONFIG_NAME).exists()):
        return  # also where a run was killed before its first checkpoint, and is sent again
    if stored is not None:
        source = Path(stored.path).resolve()
        if source.is_relative_to(folder.resolve()) or source.is_relative_to(checkpoints.resolve()):
            return
    last = checkpoints / "last.ckpt"
    go_on = f"go on with that run (--ckpt_path {last}), or " if last.exists() else ""
    if not saved:  # it ended before its first checkpoint, by an error in the settings for example
        go_on = "begin there anew (--ckpt_path last), "
    raise UsageError(
        f"{folder} holds another run, which this one would overwrite: {go_on}choose another folder with "
        "--trainer.default_root_dir DIR, or delete it"
    )


@contextmanager
def held(folder: Path, checkpoints: Path) -> Iterator[None]:
    """Keep other runs out of both folders."""
    with ExitStack() as locks:
        locks.enter_context(only_one_in(folder))
        if not checkpoints.resolve().is_relative_to(folder.resolve()):
            locks.enter_context(only_one_in(checkpoints))
        yield


def remove_unfinished(folder: Path, checkpoints: Path) -> None:
    """Take away what a killed run left half-written."""
    for left in [*checkpoints.rglob(f".*.ckpt{UNFINISHED}"), *folder.glob(f".config*.yaml{UNFINISHED}")]:
        remove(left)
