"""The parser of a command line, and the mistakes that it would let pass."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentError, Namespace

from d2v_lightning.commands.cli_help import ABOUT
from d2v_lightning.commands.settings import CommandLine
from d2v_lightning.flavour import pl
from d2v_lightning.support.errors import UsageError

importlib.import_module(f"{pl.__name__}.cli")  # a part that its package does not load

# Lightning divides by them.
_MORE_THAN_ZERO = ("trainer.accumulate_grad_batches", "trainer.check_val_every_n_epoch", "trainer.val_check_interval")


class Parser(pl.cli.LightningArgumentParser):
    """Raises on a mistake instead of printing pages, and has short help."""

    short_help: str | None = None

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise (UsageError(message) if self.exit_on_error else ArgumentError(None, message)) from ex

    def parse_args(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> Namespace:
        """As jsonargparse's, which hands `null` down to an argument of an argument as the text "None"."""
        if args is not None and len(args) == 1 and args[0].endswith("=None"):
            args = [f"{args[0].removesuffix('None')}null"]
        parsed: Namespace = super().parse_args(args, *more, **options)
        return parsed

    def format_help(self) -> str:
        return self.short_help or self.full_help()

    def full_help(self) -> str:
        text: str = super().format_help()
        return text


def check_order(line: CommandLine) -> None:
    """Refuse what jsonargparse takes for something else."""
    names = [name for name, _ in line.options]
    if line.subcommand is None and not {"--help", "-h"} & set(names):
        raise UsageError(f"say first what to do: python cli.py {'|'.join(ABOUT)} ...")
    if line.subcommand is not None and line.subcommand not in ABOUT:
        raise UsageError(f"'{line.subcommand}' is not a command: choose {', '.join(ABOUT)}")
    last_config = max((place for place, name in enumerate(names) if name == "--config"), default=0)
    for name in names[:last_config]:
        if "." in name or name in ("--model", "--data"):
            raise UsageError(
                f"{name} stands before --config\n  the file would override it: put all --config first, then {name}"
            )


def import_named_classes(line: CommandLine) -> None:
    """Import what the command line and its files name, before a checkpoint is looked through: it may name the same."""
    for class_path in line.class_paths():
        module = class_path.rpartition(".")[0]
        try:
            if module:
                importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):  # it is there, but lacks something that it needs
                raise
            # Otherwise the parser says so, with the place and the nearest name.


def refuse_values(config: Namespace, subcommand: str) -> None:
    """Refuse values that fit their types, and make no run.

    Raises:
        UsageError: there is one.
    """
    for name, value in config.get(subcommand, Namespace()).items(branches=True):
        if value is None and name in ("trainer", "model_checkpoint", "predictions"):
            raise UsageError(f"{name} is empty (null): give it settings, or leave it out")
        if isinstance(value, float) and math.isnan(value):
            raise UsageError(f"{name} is nan: it must be a number")
        if name in _MORE_THAN_ZERO and isinstance(value, (int, float)) and value <= 0:
            raise UsageError(f"{name} is {value}: it must be more than 0")
    seed = config.get(f"{subcommand}.seed_everything")
    if seed is not None and not 0 <= seed < 2**32:
        raise UsageError(f"seed_everything is {seed}: permitted is 0 to {2**32 - 1}, true or false")
