"""The command line: LightningCLI with readable errors, safe checkpoints and one folder per run."""

from __future__ import annotations

import importlib
import logging
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentError, Namespace

from d2v_lightning.callbacks.prediction_writer import PredictionWriter
from d2v_lightning.callbacks.preemption import Preemption
from d2v_lightning.callbacks.progress import Progress
from d2v_lightning.callbacks.run_summary import RunSummary
from d2v_lightning.callbacks.save_at_end import SaveAtEnd
from d2v_lightning.callbacks.save_on_error import SaveOnError
from d2v_lightning.checkpoints.atomic_io import AtomicCheckpointIO
from d2v_lightning.commands.cli_errors import Section, explain
from d2v_lightning.commands.cli_help import ABOUT, EXAMPLES, MORE, OPTIONS
from d2v_lightning.commands.ending import FirstError
from d2v_lightning.commands.resuming import StoredRun, StoreRun, changed_settings, differences, said
from d2v_lightning.commands.running import one_line, run_command
from d2v_lightning.commands.settings import CommandLine, Source
from d2v_lightning.flavour import pl, rank_zero_info, rank_zero_warn
from d2v_lightning.support.atomic import UNFINISHED, atomic_write, remove
from d2v_lightning.support.errors import UsageError, UserError, flat
from d2v_lightning.support.locks import only_one_in

importlib.import_module(f"{pl.__name__}.cli")  # a part that its package does not load

CONFIG_NAME = "config.yaml"

# What a constructor raises that was written without a thought of the value at hand.
_OF_VALUES = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, AssertionError, RuntimeError)

# Lightning divides by them.
_MORE_THAN_ZERO = ("trainer.accumulate_grad_batches", "trainer.check_val_every_n_epoch", "trainer.val_check_interval")

# Lightning says these in every run. The teacher is in eval mode on purpose; callbacks of a fit are not missing in a test;
# the rest is about its own code and its maker's services.
_NOT_FOR_PEOPLE = (
    r"Found \d+ module\(s\) in eval mode",
    r"Be aware that when using `ckpt_path`, callbacks",
    r".*isinstance\(treespec, LeafSpec\)",
    r".*(litlogger|litmodels)",
    r"Couldn't infer the batch indices",
    r"Checkpoint directory .* exists and is not empty",
    r"Restor(ing|ed all) states from",
)


class Parser(pl.cli.LightningArgumentParser):
    """Raises on a mistake instead of printing pages, and has short help."""

    short_help: str | None = None

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise (UsageError(message) if self.exit_on_error else ArgumentError(None, message)) from ex

    def format_help(self) -> str:
        return self.short_help or self.full_help()

    def full_help(self) -> str:
        text: str = super().format_help()
        return text


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


class D2VCLI(pl.cli.LightningCLI):
    """fit, validate, test and predict for every module and datamodule.

    Other than LightningCLI it never makes anything of what a checkpoint names without looking it through, and lets no
    checkpoint change what the command line says; see `StoredRun`.
    """

    def __init__(self, args: Sequence[str] | None = None) -> None:
        self.argv = list(sys.argv[1:] if args is None else args)
        self.line = CommandLine.read(self.argv)
        self.stored: StoredRun | None = None
        with ExitStack() as self.held:
            self._run()

    def _run(self) -> None:
        super().__init__(
            pl.LightningModule,
            pl.LightningDataModule,
            save_config_callback=SaveConfig,
            seed_everything_default=0,
            parser_class=Parser,
            # Otherwise --trainer.max_step passes for --trainer.max_steps.
            parser_kwargs={"allow_abbrev": False},
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=self.argv,
        )

    # ---- parsing -----------------------------------------------------------------------------------------------------

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # Lightning's is static and knows no command line
        """Lightning's, less those not asked for, whose parsers take time. `weights_only` is no option: it is always on."""
        own = {"weights_only", "return_predictions"}
        everything = {name: skipped | own for name, skipped in pl.cli.LightningCLI.subcommands().items()}
        asked = self.line.subcommand
        return {asked: everything[asked]} if asked in everything else everything

    def add_arguments_to_parser(self, parser: pl.cli.LightningArgumentParser) -> None:
        parser.add_lightning_class_args(pl.callbacks.ModelCheckpoint, "model_checkpoint")
        parser.add_lightning_class_args(PredictionWriter, "predictions")
        # Without the counter a run that goes on writes last.ckpt again, and never last-v1.ckpt beside it.
        parser.set_defaults({"model_checkpoint.save_last": True, "model_checkpoint.enable_version_counter": False})
        # Our loaders share samples out by themselves; see also `_share_out_foreign_data`.
        parser.set_defaults({"trainer.use_distributed_sampler": False})

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> pl.cli.LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        examples = "\n".join(f"  {example}" for example in EXAMPLES[subcommand])
        parser.short_help = (
            f"{ABOUT[subcommand]}\n\n{examples}\n\noptions:\n{OPTIONS[subcommand]}\n{MORE}\n\n"
            "D2V_DEBUG=1 before the command adds the traceback to an error.\n"
        )
        return parser

    def parse_arguments(self, parser: pl.cli.LightningArgumentParser, args: Any) -> None:
        """Parse the command line on top of what a checkpoint says of itself.

        Raises:
            UsageError: there is a mistake in it.
        """
        commands = "\n".join(f"  {name:9} {about}" for name, about in ABOUT.items())
        parser.short_help = f"{commands}\n\nFor options and examples: python cli.py fit --help\n"
        self._check_order()
        subparser = self._subcommand_parsers.get(self.line.subcommand or "")
        if subparser is not None and self.line.has("--help_all"):
            print(subparser.full_help())
            raise SystemExit(0)
        for source in self.line.files():
            if source.problem is not None:
                raise UsageError(source.problem)
        before = Source("checkpoint", {})
        if subparser is not None and not self.line.has("--help"):
            self._import_named_classes()
            before = self._read_checkpoint()
            subparser.set_defaults(before.value)
        try:
            self.config = parser.parse_args(self.argv)
        except UsageError as error:
            if subparser is None:
                raise
            raise UsageError(self._explain(subparser, str(error), before)) from error
        for name, value in self.config.get(str(self.line.subcommand), Namespace()).items(branches=True):
            if value is None and name in ("trainer", "model_checkpoint", "predictions"):
                raise UsageError(f"{name} is empty (null): give it settings, or leave it out")
            if isinstance(value, float) and math.isnan(value):
                raise UsageError(f"{name} is nan: it must be a number")
            if name in _MORE_THAN_ZERO and isinstance(value, (int, float)) and value <= 0:
                raise UsageError(f"{name} is {value}: it must be more than 0")
        seed = self.config.get(f"{self.line.subcommand}.seed_everything")
        if seed is not None and not 0 <= seed < 2**32:
            raise UsageError(f"seed_everything is {seed}: permitted is 0 to {2**32 - 1}, true or false")

    def _check_order(self) -> None:
        """Refuse what jsonargparse takes for something else."""
        names = [name for name, _ in self.line.options]
        if self.line.subcommand is None and not {"--help", "-h"} & set(names):
            raise UsageError(f"say first what to do: python cli.py {'|'.join(ABOUT)} ...")
        if self.line.subcommand is not None and self.line.subcommand not in ABOUT:
            raise UsageError(f"'{self.line.subcommand}' is not a command: choose {', '.join(ABOUT)}")
        last_config = max((place for place, name in enumerate(names) if name == "--config"), default=0)
        for name in names[:last_config]:
            if "." in name or name in ("--model", "--data"):
                raise UsageError(
                    f"{name} stands before --config\n  the file would override it: put all --config first, then {name}"
                )

    def _import_named_classes(self) -> None:
        """Import what the command line and its files name, before a checkpoint is looked through: it may name the same."""
        for class_path in self.line.class_paths():
            module = class_path.rpartition(".")[0]
            try:
                if module:
                    importlib.import_module(module)
            except ModuleNotFoundError as error:
                if not f"{module}.".startswith(f"{error.name}."):  # it is there, but lacks something that it needs
                    raise
                # Otherwise the parser says so, with the place and the nearest name.

    def _read_checkpoint(self) -> Source:
        """Look the checkpoint through, and give what the command line leaves to it: model, data, length of the run."""
        path = self.line.value("ckpt_path")
        if path is None or path == "last":
            return Source("checkpoint", {})
        self.stored = StoredRun(str(path))
        settings: dict[str, Any] = {}
        if not self.line.gives("model"):
            settings["model"] = self.stored.model
            if self.line.subcommand == "fit":
                settings |= {f"trainer.{name}": value for name, value in self.stored.trainer.items()}
        if not self.line.gives("data") and self.stored.data is None:
            raise UsageError(
                f"{path} does not say which data it was trained on, as a script or a class of your own wrote it: give "
                "--config FILE, or --data CLASS"
            )
        if not self.line.gives("data"):
            settings["data"] = self.stored.data_alone
        return Source(str(path), settings)

    def _explain(self, parser: pl.cli.LightningArgumentParser, message: str, before: Source) -> str:
        sections = {
            "model": Section(pl.LightningModule, required=True),
            "data": Section(pl.LightningDataModule, required=True),
            "trainer": Section(pl.Trainer),
            "model_checkpoint": Section(pl.callbacks.ModelCheckpoint),
            "predictions": Section(PredictionWriter),
        }
        kinds = {action.dest.partition(".")[0]: getattr(action, "_typehint", Any) for action in parser._actions}
        trees = {name: value for name, value in before.value.items() if name in sections}
        scalars = {name: kinds[name] for name in sorted(kinds) if name not in sections}
        return explain(self.line, sections, scalars, message, Source(before.name, trees))

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning would merge the checkpoint's hyper-parameters over the command line, and run what they name."""

    # ---- the run's folder --------------------------------------------------------------------------------------------

    @property
    def _settings(self) -> Any:
        return self.config[self.subcommand]

    def before_instantiate_classes(self) -> None:
        """Choose the folder, and refuse to mix two runs before anything expensive happens."""
        trainer = self._settings.trainer
        if trainer.default_root_dir is None:
            trainer.default_root_dir = str(self._default_folder())
        folder = Path(trainer.default_root_dir)
        self._share_out_foreign_data()
        # What is stored and saved is the configuration without the places below: it can be used for another folder.
        self._dump_config()
        self.save_config_kwargs = {"settings": self._plain_settings}
        for logger in _specifications(trainer.logger):
            if "save_dir" in logger.get("init_args", {}) and logger.init_args.save_dir in (None, "."):
                logger.init_args.save_dir = str(folder)
        if self._settings.model_checkpoint.dirpath is None:
            self._settings.model_checkpoint.dirpath = str(folder / "checkpoints")
        if self.subcommand == "fit":
            self._find_last()
            if not trainer.fast_dev_run:
                self._refuse_other_run(folder)
        elif self.line.value("ckpt_path") == "last":
            raise UsageError(f"{self.subcommand} needs a file: --ckpt_path {folder / 'checkpoints' / 'last.ckpt'}")

    def _share_out_foreign_data(self) -> None:
        """Leave it to Lightning to share out the samples of a datamodule that is none of ours, unless the user says."""
        name = "use_distributed_sampler"
        given = [source.value.get("trainer") for source in self.line.configs]
        if self.line.has(f"--trainer.{name}") or any(isinstance(one, dict) and name in one for one in given):
            return
        data = getattr(self._settings.get("data"), "class_path", None)
        if data is None:
            return
        module, _, cls = data.rpartition(".")
        bases = getattr(sys.modules[module], cls).__mro__
        self._settings.trainer[name] = not any(base.__module__.startswith("datamodules.") for base in bases)

    def _default_folder(self) -> Path:
        configs = self.line.configs
        if self.stored is not None and not (self.subcommand == "fit" and configs):
            return self.stored.run_folder
        if self.subcommand != "fit":
            return Path.cwd()
        return Path("runs", Path(configs[0].name).stem if configs else "data2vec")

    def _find_last(self) -> None:
        """`--ckpt_path last` goes on if the folder has a checkpoint: a scheduler can send one command again and again."""
        if self._settings.ckpt_path != "last":
            return
        folder = Path(self._settings.model_checkpoint.dirpath)
        last = folder / "last.ckpt"
        others = sorted(folder.glob("*.ckpt"), key=os.path.getmtime) if not os.path.lexists(last) else []
        if others:  # killed after the first checkpoint of a run, before last.ckpt was written beside it
            rank_zero_info(f"no checkpoint at {last} yet: the run goes on from {others[-1]}")
            last = others[-1]
        if last.is_file():
            self.stored = StoredRun(str(last))
            self._settings.ckpt_path = str(last)
        else:
            self._settings.ckpt_path = None
            rank_zero_info(f"no checkpoint at {last} yet: the run starts from the beginning")

    def _refuse_other_run(self, folder: Path) -> None:
        checkpoints = Path(self._settings.model_checkpoint.dirpath)
        saved = any(checkpoints.glob("*.ckpt"))
        if not saved and (self.line.value("ckpt_path") == "last" or not (folder / CONFIG_NAME).exists()):
            return  # also where a run was killed before its first checkpoint, and is sent again
        if self.stored is not None:
            source = Path(self.stored.path).resolve()
            if source.is_relative_to(folder.resolve()) or source.is_relative_to(checkpoints.resolve()):
                return
        last = checkpoints / "last.ckpt"
        go_on = f"go on with that run (--ckpt_path {last}), or " if last.exists() else ""
        raise UsageError(
            f"{folder} holds another run, which this one would overwrite: {go_on}choose another folder with "
            "--trainer.default_root_dir DIR, or delete it"
        )

    def before_fit(self) -> None:
        """Hold the folder until the run ends, look again, and take away what a killed run left half-written."""
        given = self._settings.trainer
        names = given.default_root_dir, self._settings.model_checkpoint.dirpath
        folder, checkpoints = map(Path, names)
        if given.fast_dev_run or not self.trainer.is_global_zero or any("://" in name for name in names):
            return
        self.held.enter_context(only_one_in(folder))
        if not checkpoints.resolve().is_relative_to(folder.resolve()):
            self.held.enter_context(only_one_in(checkpoints))
        self._refuse_other_run(folder)
        for left in [*checkpoints.rglob(f".*.ckpt{UNFINISHED}"), *folder.glob(f".config*.yaml{UNFINISHED}")]:
            remove(left)

    # ---- building ----------------------------------------------------------------------------------------------------

    def instantiate_classes(self) -> None:
        # Where one of several classes may stand, jsonargparse tries each and joins what they say.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # what stands in its place is new in jsonargparse 4.49
            self.parser.add_instantiator(_construct, object)
        try:
            super().instantiate_classes()
        except _ConstructorError as stopped:
            raise stopped.error from stopped.error.__cause__
        if self.stored is not None:
            self._compare(self.stored)
            if self.subcommand == "fit":
                rank_zero_info(f"going on from {self.stored.path}, after optimiser step {self.stored.step}")
            if self.stored.tokenizer is not None:  # the data needs it before Lightning loads the checkpoint
                self.model.backbone.tokenizer = self.stored.tokenizer
        elif self.subcommand != "fit":
            rank_zero_warn("no --ckpt_path: these are the weights that the model starts with")

    def _compare(self, stored: StoredRun) -> None:
        """Refuse to go on with another model; say what else has changed."""
        now = getattr(self.model, "config", None)
        if now is None:
            raise UsageError(f"{type(self.model).__name__} is not a module of d2v_lightning, {stored.path} holds one")
        changes = list(differences(now, stored.model, "model"))
        if changes and (self.subcommand == "fit" or changes[0][0] == "model"):
            raise UsageError(
                f"{stored.path} holds another model: {said(changes)}. Leave --model and the model section of --config out to "
                "take it from the checkpoint, or start a new run without --ckpt_path"
            )
        if changes:
            rank_zero_warn(f"the command line's model is used, not that of {stored.path}: {said(changes)}")
        if self.subcommand == "fit":
            self._say_changed_settings(stored)

    def _say_changed_settings(self, stored: StoredRun) -> None:
        words: list[str] = []
        reorders = False
        data = self._plain_settings.get("data")
        if data and stored.data and data["class_path"] == stored.data["class_path"]:
            mine, theirs = data["init_args"], dict(stored.data["init_args"])
            if "tokenizer" in mine and stored.tokenizer is not None:  # compared by what it does, wherever it lies
                theirs["tokenizer"] = mine.get("tokenizer")
            words, reorders = changed_settings(mine, theirs, "data")
        now = {name: self._plain_settings["trainer"].get(name) for name in stored.trainer}
        words += changed_settings(now, stored.trainer, "trainer")[0]
        if words:
            order = (
                ". The rest of the run sees other samples, or in another order, than it would have" if reorders else ""
            )
            rank_zero_warn(f"going on from {stored.path} with changed settings: {', '.join(words)}{order}")

    @property
    def _plain_settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = self.config_dump
        return settings

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """The Trainer with this project's callbacks, besides those of the configuration."""
        given = self._get(self.config_init, "trainer")
        fits = self.subcommand == "fit"
        loggers = _as_list(given.logger)
        if given.logger in (None, True):
            loggers = []
        if given.logger is not False and fits and not given.barebones:
            # The last one: the first is what `self.logger` gives, and pictures go to.
            loggers.append(pl.loggers.CSVLogger(given.default_root_dir, name="metrics"))
        kwargs["logger"] = loggers or False
        plugins = _as_list(given.plugins)
        if str(given.strategy).startswith(("auto", "ddp")):
            plugins.append(AtomicCheckpointIO())
        kwargs["plugins"] = plugins
        callbacks = _as_list(given.callbacks)
        if _has(callbacks, pl.callbacks.LearningRateFinder):
            raise UserError(
                "LearningRateFinder sets `lr` of a module, which modules of d2v_lightning do not have: try several "
                "--model.optimization.lr in short runs"
            )
        kinds = {type(callback) for callback in callbacks}
        callbacks += [callback for callback in self._own_callbacks(given, bool(loggers)) if type(callback) not in kinds]
        return _construct(self._instantiate_trainer, {**given, **kwargs, "callbacks": [FirstError(), *callbacks]}, [])

    def _own_callbacks(self, given: Namespace, has_logger: bool) -> list[pl.Callback]:
        if self.subcommand == "predict":
            writer: PredictionWriter = self._get(self.config_init, "predictions")
            writer.options = ("--predictions.output FILE", "--predictions.overwrite true")
            return [writer, Preemption()]
        if self.subcommand != "fit" or given.barebones:
            return [Preemption()]
        settings = self._plain_settings
        chosen: list[pl.Callback] = [StoreRun(settings.get("data"), settings["trainer"]), RunSummary()]
        if not given.fast_dev_run:  # in one, Lightning's ModelCheckpoint(save_last=True) writes last.ckpt all the same
            chosen.append(Preemption())
            if given.enable_checkpointing is not False:
                chosen += [self._get(self.config_init, "model_checkpoint"), SaveAtEnd(), SaveOnError()]
        if has_logger:
            chosen.append(pl.callbacks.LearningRateMonitor("step"))
        if given.enable_progress_bar is not False and not _has(given.callbacks, pl.callbacks.ProgressBar):
            chosen.append(Progress())
        return chosen

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        arguments: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        if subcommand == "predict":
            arguments["return_predictions"] = False  # the writer has them
        return {**arguments, "weights_only": True}


def main(args: Sequence[str] | None = None) -> None:
    """Run a command line; a mistake ends with a few lines and exit status 2, a refusal of ours with one line and 1."""
    _leave_out_noise()
    status = run_command(lambda: D2VCLI(args))
    if status:
        raise SystemExit(status)


class _ConstructorError(BaseException):
    """Carries what a constructor raised past jsonargparse, which catches every `Exception`."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def _construct(cls: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """An instance; what comes of a value that its constructor cannot use is said with the name of the class."""
    try:
        return cls(*args, **kwargs)
    except _OF_VALUES as error:
        if one_line(error) is not None:
            raise _ConstructorError(error) from error
        name = cls.__name__ if isinstance(cls, type) else "Trainer"
        reason = flat(error) or type(error).__name__
        refusal = UserError(f"{name} cannot be made with these settings: {reason}")
        refusal.__cause__ = error
        raise _ConstructorError(refusal) from error
    except Exception as error:
        raise _ConstructorError(error) from error


def _leave_out_noise() -> None:
    for message in _NOT_FOR_PEOPLE:
        warnings.filterwarnings("ignore", message)
    logging.getLogger(f"{pl.__name__}.utilities.rank_zero").addFilter(_is_no_noise)  # once, however often


def _is_no_noise(record: logging.LogRecord) -> bool:
    return not any(re.match(pattern, record.getMessage()) for pattern in _NOT_FOR_PEOPLE)


def _has(callbacks: Any, kind: type) -> bool:
    return any(isinstance(callback, kind) for callback in _as_list(callbacks))


def _as_list(value: Any) -> list[Any]:
    if value is None or isinstance(value, bool):
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _specifications(value: Any) -> list[Any]:
    """Parsed settings of classes, of one or a list."""
    return [item for item in _as_list(value) if isinstance(item, Namespace) and "class_path" in item]
