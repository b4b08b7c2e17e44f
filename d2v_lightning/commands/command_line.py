"""The command line: LightningCLI with readable errors, safe checkpoints and one folder per run."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from d2v_lightning.callbacks.prediction_writer import PredictionWriter
from d2v_lightning.callbacks.preemption import Preemption
from d2v_lightning.callbacks.progress import Progress
from d2v_lightning.callbacks.run_summary import RunSummary
from d2v_lightning.callbacks.save_at_end import SaveAtEnd
from d2v_lightning.callbacks.save_on_error import SaveOnError
from d2v_lightning.checkpoints.atomic_io import AtomicCheckpointIO
from d2v_lightning.commands.cli_errors import Section, explain
from d2v_lightning.commands.cli_help import ABOUT, EXAMPLES, MORE, OPTIONS
from d2v_lightning.commands.constructing import ConstructorError, construct
from d2v_lightning.commands.ending import FirstError
from d2v_lightning.commands.noise import leave_out_noise
from d2v_lightning.commands.parser import Parser, check_order, import_named_classes, refuse_values
from d2v_lightning.commands.resuming import StoredRun, StoreRun, compare
from d2v_lightning.commands.run_folder import (
    SaveConfig,
    default_folder,
    held,
    last_checkpoint,
    refuse_other_run,
    remove_unfinished,
)
from d2v_lightning.commands.running import run_command
from d2v_lightning.commands.settings import CommandLine, Source
from d2v_lightning.flavour import pl, rank_zero_info, rank_zero_warn
from d2v_lightning.support.errors import UsageError, UserError

importlib.import_module(f"{pl.__name__}.cli")  # a part that its package does not load


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
        check_order(self.line)
        subparser = self._subcommand_parsers.get(self.line.subcommand or "")
        if subparser is not None and self.line.has("--help_all"):
            print(subparser.full_help())
            raise SystemExit(0)
        for source in self.line.files():
            if source.problem is not None:
                raise UsageError(source.problem)
        before = Source("checkpoint", {})
        if subparser is not None and not self.line.has("--help"):
            import_named_classes(self.line)
            before = self._read_checkpoint()
            subparser.set_defaults(before.value)
        try:
            self.config = parser.parse_args(self.argv)
        except UsageError as error:
            if subparser is None:
                raise
            raise UsageError(self._explain(subparser, str(error), before)) from error
        refuse_values(self.config, str(self.line.subcommand))

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
            trainer.default_root_dir = str(default_folder(str(self.subcommand), self.line.configs, self.stored))
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
            if self._settings.ckpt_path == "last":
                # It goes on if the folder has a checkpoint: a scheduler can send one command again and again.
                last = last_checkpoint(Path(self._settings.model_checkpoint.dirpath))
                self.stored = self.stored if last is None else StoredRun(str(last))
                self._settings.ckpt_path = None if last is None else str(last)
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

    def _refuse_other_run(self, folder: Path) -> None:
        checkpoints = Path(self._settings.model_checkpoint.dirpath)
        refuse_other_run(folder, checkpoints, self.stored, sent_again=self.line.value("ckpt_path") == "last")

    def before_fit(self) -> None:
        """Hold the folder until the run ends, look again, and take away what a killed run left half-written."""
        given = self._settings.trainer
        names = given.default_root_dir, self._settings.model_checkpoint.dirpath
        folder, checkpoints = map(Path, names)
        if given.fast_dev_run or not self.trainer.is_global_zero or any("://" in name for name in names):
            return
        self.held.enter_context(held(folder, checkpoints))
        self._refuse_other_run(folder)
        remove_unfinished(folder, checkpoints)

    # ---- building ----------------------------------------------------------------------------------------------------

    def instantiate_classes(self) -> None:
        # Where one of several classes may stand, jsonargparse tries each and joins what they say.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # what stands in its place is new in jsonargparse 4.49
            self.parser.add_instantiator(construct, object)
        try:
            super().instantiate_classes()
        except ConstructorError as stopped:
            raise stopped.error from stopped.error.__cause__
        if self.stored is not None:
            compare(self.model, self._plain_settings, self.stored, goes_on=self.subcommand == "fit")
            if self.subcommand == "fit":
                rank_zero_info(f"going on from {self.stored.path}, after optimiser step {self.stored.step}")
            if self.stored.tokenizer is not None:  # the data needs it before Lightning loads the checkpoint
                self.model.backbone.tokenizer = self.stored.tokenizer
        elif self.subcommand != "fit":
            rank_zero_warn("no --ckpt_path: these are the weights that the model starts with")

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
        return construct(self._instantiate_trainer, {**given, **kwargs, "callbacks": [FirstError(), *callbacks]}, [])

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
    leave_out_noise()
    status = run_command(lambda: D2VCLI(args))
    if status:
        raise SystemExit(status)


def _has(callbacks: Any, kind: type) -> bool:
    return any(isinstance(callback, kind) for callback in _as_list(callbacks))


def _as_list(value: Any) -> list[Any]:
    if value is None or isinstance(value, bool):
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _specifications(value: Any) -> list[Any]:
    """Parsed settings of classes, of one or a list."""
    return [item for item in _as_list(value) if isinstance(item, Namespace) and "class_path" in item]
