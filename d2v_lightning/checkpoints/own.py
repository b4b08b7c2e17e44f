"""Our own checkpoints: what a file says of itself, and loading it without running anything that it names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from d2v_lightning.checkpoints.model_differences import say_changed_model
from d2v_lightning.checkpoints.stored_normalization import take_over_normalization
from d2v_lightning.checkpoints.stored_tokenizer import refuse_another
from d2v_lightning.checkpoints.training_state import refuse_training_state
from d2v_lightning.configurable import (
    OWN_PACKAGES,
    Configurable,
    Tree,
    build,
    is_ours,
    own_class,
    plain,
    refuse_foreign,
)
from d2v_lightning.flavour import rank_zero_warn
from d2v_lightning.optim.stored_optimizer import checkpoint_name
from d2v_lightning.recipes import FromRecipe, overridden
from d2v_lightning.support.errors import UserError, naming
from d2v_lightning.support.tensor_files import REAL, compare_checksums, named_tensors, read_tensors

FORMAT_VERSION = 2  # of checkpoints and directories: classes by their public names
RUN_KEY = "run"  # settings of data and trainer in a checkpoint
# Trainer settings that decide what a run computes, and are plain numbers: a checkpoint may give them back.
_TRAINER_SETTINGS = (
    "max_epochs",
    "max_steps",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "precision",
    "limit_train_batches",
    "limit_val_batches",
    "val_check_interval",
    "check_val_every_n_epoch",
    "num_sanity_val_steps",
    "log_every_n_steps",
)


class LoadsOwnCheckpoints(FromRecipe, Configurable):
    """Mixin for our LightningModules: a checkpoint carries format version and constructor tree, and rebuilds from them.

    `hyper_parameters` in the file is the module's `config`: plain data, whether the module was made in Python or by the
    CLI. `load_from_checkpoint` reads tensors and plain data only and makes classes of this project only.
    """

    backbone: Any  # has the `licence` of the weights that the module started from, and a text model's `tokenizer`

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["d2v_lightning"] = {
            "format_version": FORMAT_VERSION,
            "licence": self.backbone.licence,
            "tokenizer": self.backbone.tokenizer,
        }
        checkpoint["hyper_parameters"] = self.config

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        module: Any = self  # a mixin of LightningModules
        name = checkpoint_name(module)
        compare_checksums(name)
        check_format(checkpoint, name)
        own = module.state_dict()
        refuse_odd_numbers(own, checkpoint["state_dict"], name)
        _say_other_precision(own, checkpoint["state_dict"], module.trainer.precision, name)
        refuse_training_state(checkpoint, module, name)
        stamp = checkpoint["d2v_lightning"]
        if self.backbone.tokenizer is not None:  # of the data, which was read before
            refuse_another("of the data", self.backbone.tokenizer, stamp.get("tokenizer"))
        take_over_normalization(module, checkpoint["hyper_parameters"], name)
        self._take_over(stamp)
        if module.trainer.state.fn == "fit":
            say_changed_model(self.config, checkpoint["hyper_parameters"], name)

    def _take_over(self, stamp: dict[str, Any]) -> None:
        self.backbone.licence = stamp.get("licence")
        self.backbone.tokenizer = stamp.get("tokenizer") or self.backbone.tokenizer

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Path,
        map_location: Any = "cpu",
        hparams_file: None = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **overrides: Any,
    ) -> Self:
        """The module that was saved, weights included.

        A subclass of your own loads its files with its own `load_from_checkpoint`; classes of its arguments are still this
        project's only, and no module that the file names is imported.

        Args:
            checkpoint_path: a `.ckpt` file of ours.
            map_location: device for the weights.
            hparams_file: none is needed, and none is taken: the file holds its settings.
            strict: False takes over the weights that both have, and says which others there are.
            weights_only: always true, since nothing but tensors and plain data is ever read.
            overrides: constructor arguments that take the place of the stored ones, `label_smoothing=0.1`; dotted names
                lead into modules, `**{"optimization.lr": 1e-4}`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, from another project, of another format, of another class, or names foreign code
                or another file; or an argument is not one of those above, or leads to other weights.
        """
        if hparams_file is not None:
            raise UserError(
                f"hparams_file is {hparams_file!r}: {checkpoint_path} holds its settings, give others by name"
            )
        if weights_only is False:
            raise UserError("weights_only is False: a checkpoint is read as tensors and plain data only, leave it out")
        checkpoint = read_checkpoint(checkpoint_path, map_location)
        tree, state = checkpoint["hyper_parameters"], named_tensors(checkpoint["state_dict"], str(checkpoint_path))
        held = cls if _is_of(cls, tree["class_path"]) else own_class(tree["class_path"])
        if not issubclass(held, cls):
            raise UserError(f"{checkpoint_path} holds a {tree['class_path']}, not a {cls.__name__}")
        with naming(checkpoint_path):
            refuse_foreign(tree, held)
            tree = overridden(tree, {name: plain(value, name) for name, value in overrides.items()})
            refuse_foreign(tree, held)
            refuse_unfit(tree, held, state, str(checkpoint_path), strict=strict is not False)
            module = build(tree, held)
        load_exactly(module, _shared(module, state) if strict is False else state, str(checkpoint_path))
        module._take_over(checkpoint["d2v_lightning"])
        return module


def _shared(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A module's own weights, with those of a file where it has them; the others are said."""
    own = module.state_dict()
    missing, foreign = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    if missing or foreign:
        rank_zero_warn(f"weights that are not in the file and stay as they are: {missing}; left out: {foreign}")
    return {name: state.get(name, tensor) for name, tensor in own.items()}


def _is_of(cls: type, class_path: Any) -> bool:
    """Whether a stored path is that of a user's class `cls`, whose module was "__main__" while it was the script."""
    if cls.__module__.partition(".")[0] in OWN_PACKAGES:
        return False
    module, name = str(class_path).removesuffix(f".{cls.__qualname__}"), cls.__qualname__
    return f"{module}.{name}" == class_path and (module == cls.__module__ or "__main__" in (module, cls.__module__))


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """A checkpoint of ours as tensors and plain data.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: see `LoadsOwnCheckpoints.load_from_checkpoint`.
    """
    checkpoint = read_tensors(path, map_location)
    check_format(checkpoint, str(path))
    return checkpoint


def load_exactly(module: nn.Module, state: Mapping[str, Tensor], path: str) -> None:
    """`load_state_dict`, refusing in one line what is missing, foreign or of another shape, see `refuse_others`."""
    refuse_others(module, state, path)
    module.load_state_dict(dict(state))


def refuse_others(
    module: nn.Module, state: Mapping[str, Tensor], path: str, needed: Callable[[str], bool] = lambda name: True
) -> None:
    """Compare weights with the module that they are meant for; those that are not `needed` may be missing.

    Raises:
        ValueError: names and shapes of `state` are not exactly the module's.
    """
    _refuse_other_shapes(module, state, path, needed)
    refuse_odd_numbers(module.state_dict(), state, path)


def _refuse_other_shapes(
    module: nn.Module, state: Mapping[str, Tensor], path: str, needed: Callable[[str], bool]
) -> None:
    own = module.state_dict()
    missing, foreign = sorted(filter(needed, set(own) - set(state))), sorted(set(state) - set(own))
    if missing or foreign:
        raise UserError(f"{path}: weights missing {missing[:3]}, not expected {foreign[:3]}")
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise UserError(f"{path}: {name} has shape {tuple(tensor.shape)}, expected {tuple(own[name].shape)}")


def refuse_unfit(
    tree: Tree,
    cls: type,
    state: Mapping[str, Tensor],
    path: str,
    needed: Callable[[str], bool] = lambda name: True,
    strict: bool = True,
) -> None:
    """Compare a stored tree with the weights beside it, before memory is taken for what it describes.

    Args:
        tree: the stored tree.
        cls: of its outermost node.
        state: the weights. Only the shapes of such on the device "meta" are compared.
        path: what messages call the file.
        needed: see `refuse_others`.
        strict: False where only weights are compared that both have.

    Raises:
        ValueError: it describes no network, or another one; or a weight holds NaN or infinity.
    """
    most = max((number for number in _repeats(tree) if isinstance(number, int)), default=0)
    if most > len(state):
        raise UserError(f"{path} describes a network with {most} parts of a kind, but has {len(state)} weights")
    try:
        with torch.device("meta"), naming(path):
            module = build(tree, cls)
    except UserError:
        raise
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RuntimeError, MemoryError) as error:
        if not is_ours(tree, cls):  # a constructor of the user's may ask for values, which there are none of on "meta"
            return
        raise UserError(f"{path}: its arguments make no {cls.__name__}: {str(error).partition(chr(10))[0]}") from error
    own = module.state_dict()
    if not strict:
        state, needed = {name: tensor for name, tensor in state.items() if name in own}, lambda name: False
    _refuse_other_shapes(module, state, path, needed)
    if not any(tensor.is_meta for tensor in state.values()):
        refuse_odd_numbers(own, state, path)


def _repeats(tree: Any) -> Iterator[Any]:
    """What the arguments in a tree that say how often a part is repeated are set to."""
    for name, value in tree.items() if isinstance(tree, dict) else ():
        if str(name).endswith("depth") or name == "num_tables":
            yield value
        yield from _repeats(value)


def refuse_odd_numbers(own: Mapping[str, Tensor], state: Mapping[str, Tensor], path: str) -> None:
    """Compare the kind of numbers of weights with that of a module's, where both have a weight of the name.

    Raises:
        ValueError: a weight is no tensor, of another kind of numbers, or holds NaN or infinity.
    """
    for name, tensor in named_tensors(state, path).items():
        if name in own and (tensor.dtype in REAL) != (own[name].dtype in REAL):
            raise UserError(f"{path}: {name} holds {tensor.dtype}, where {own[name].dtype} is expected")
        if tensor.dtype in REAL and not torch.isfinite(tensor).all():
            raise UserError(f"{path}: {name} holds NaN or infinity")


def _say_other_precision(own: Mapping[str, Tensor], state: Mapping[str, Tensor], precision: str, name: str) -> None:
    """Say where weights were stored with other precision than the run's, which no exact resume survives."""
    others = {(state[key].dtype, own[key].dtype) for key in set(own) & set(state)}
    for theirs, ours in sorted(((a, b) for a, b in others if a != b), key=str):
        # A run in half precision converts its module later than its checkpoint is read.
        if precision not in ("16-true", "bf16-true", "64-true"):
            rank_zero_warn(
                f"{name}: weights are stored as {theirs} and were converted to {ours}, so some digits are lost"
            )


def stored_settings(value: Any, path: str, key: str) -> Tree:
    """Settings that a file holds at `key`; nothing is none.

    Raises:
        ValueError: they are no mapping.
    """
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{path}: {key} is a {type(value).__name__}, where a mapping is expected")
    return value or {}


def is_trainer_setting(name: str, value: Any) -> bool:
    """Whether a stored setting of the Trainer may be taken over: one that decides what a run computes, a number or a word."""
    plain_text = isinstance(value, str) and re.fullmatch(r"[a-z0-9-]+", value) is not None
    return name in _TRAINER_SETTINGS and (isinstance(value, (bool, int, float)) or plain_text)


def check_format(checkpoint: Any, name: str) -> None:
    """Refuse what is no checkpoint of ours, or is of another format."""
    if not isinstance(checkpoint, dict) or "d2v_lightning" not in checkpoint:
        raise UserError(
            f"{name} is not a checkpoint of d2v_lightning. Meta's released files load with `from_pretrained`"
        )
    stamp = checkpoint["d2v_lightning"]
    version = stamp.get("format_version") if isinstance(stamp, dict) else None
    tree = checkpoint.get("hyper_parameters")
    described = isinstance(tree, dict) and {"class_path", "init_args"} <= set(tree) and "state_dict" in checkpoint
    if type(version) is not int or not described:  # True is an int too
        raise UserError(
            f"{name} is not a whole checkpoint: it lacks format version, the model's arguments or its weights"
        )
    for entry in ("epoch", "global_step"):
        if type(checkpoint.get(entry, 0)) is not int:
            raise UserError(f"{name}: {entry} is {str(checkpoint[entry])[:60]!r}, where a count is expected")
    refuse_other_format(version, name)


def refuse_other_format(version: int, name: str) -> None:
    """Compare the format of a file or directory of ours with the one that is read.

    Raises:
        ValueError: it is another.
    """
    if version != FORMAT_VERSION:
        remedy = "upgrade d2v_lightning" if version > FORMAT_VERSION else "write it anew with this version"
        raise UserError(f"{name} has format {version}, this version reads format {FORMAT_VERSION}: {remedy}")
