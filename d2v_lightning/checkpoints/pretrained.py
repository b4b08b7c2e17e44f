"""Pre-trained weights from any file we know, as one thing: a constructor tree and a state dict of ours."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

from torch import nn

from d2v_lightning.checkpoints import hub, stored_tokenizer
from d2v_lightning.checkpoints.content import Content
from d2v_lightning.checkpoints.directory import is_own, read_directory, write_directory
from d2v_lightning.checkpoints.huggingface import huggingface_content
from d2v_lightning.checkpoints.official import convert_official, is_official
from d2v_lightning.checkpoints.own import (
    RUN_KEY,
    LoadsOwnCheckpoints,
    check_format,
    is_trainer_setting,
    load_exactly,
    refuse_unfit,
    stored_settings,
)
from d2v_lightning.checkpoints.tables import Row
from d2v_lightning.configurable import build, own_class, refuse_foreign
from d2v_lightning.nn.backbone import Backbone
from d2v_lightning.support.errors import UserError, naming
from d2v_lightning.support.tensor_files import named_tensors, read_tensors


def read_pretrained(
    path: str | Path,
    dictionary: list[str] | None = None,
    pretrained: str | Path | None = None,
    whole: bool = True,
) -> Content:
    """Read a network from anywhere. Nothing in the file is executed.

    Args:
        path: one of our checkpoints; a file of Meta's, pre-trained or fine-tuned; a directory of `save_pretrained`, or of
            transformers' Data2Vec models, BEiT, Wav2Vec2 and RoBERTa, with or without a task's head; or a name of such
            a directory on the model hub.
        dictionary: see `convert_official`.
        pretrained: the file that a fine-tuned one of fairseq's started from, where its own `w2v_path` or `model_path` does
            not lead there.
        whole: False where a backbone is all that is wanted: head, decoder and teacher may then be missing.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, of no known layout, or names a class that is not this project's.
    """
    path = os.path.expanduser(path)
    if not Path(path).is_file():
        directory = hub.directory_of(path)
        if not is_own(directory):
            return huggingface_content(directory, str(path), whole)._replace(
                tokenizer=stored_tokenizer.from_directory(directory), path=str(path)
            )
        content = read_directory(directory)
        _refuse_unfit(content, str(path), whole)
        return content._replace(path=str(path))
    file = read_tensors(path, mapped=True)
    if is_official(file):
        return convert_official(file, str(path), dictionary, pretrained, whole)._replace(path=str(path))
    if not isinstance(file, dict) or "d2v_lightning" not in file:
        holds = f"entries {sorted(map(str, file))[:5]}" if isinstance(file, dict) else f"a {type(file).__name__}"
        raise UserError(
            f"{path} is of another project: it holds {holds}, while ours have 'd2v_lightning', and Meta's 'model' with "
            "'cfg' or 'args'"
        )
    check_format(file, str(path))
    tree, state = file["hyper_parameters"], file["state_dict"]
    with naming(path):
        refuse_foreign(tree)
    state = named_tensors(state, str(path))
    name = str(tree["class_path"]).rpartition(".")[2]
    rows = [Row(weight, tuple(tensor.shape), "matched", weight) for weight, tensor in state.items()]
    kind = f"{name} of d2v_lightning at step {file.get('global_step', 0):,}"
    run = stored_settings(file.get(RUN_KEY), str(path), RUN_KEY)
    stored = stored_settings(run.get("trainer"), str(path), f"{RUN_KEY}.trainer").items()
    trainer = {name: value for name, value in stored if is_trainer_setting(name, value)}
    stamp = file["d2v_lightning"]
    content = Content(
        tree, state, kind, stamp.get("licence"), rows, run.get("data"), _scores(file), stamp.get("tokenizer")
    )
    content = content._replace(trainer=trainer)
    _refuse_unfit(content, str(path), whole)
    return content._replace(path=str(path))


def _refuse_unfit(content: Content, path: str, whole: bool) -> None:
    """Compare one of our own trees with its weights, see `refuse_unfit`."""
    cls, state = own_class(content.tree["class_path"]), dict(content.state)
    if not issubclass(cls, nn.Module):
        raise UserError(f"{path} holds a {cls.__name__}, which is no network")
    if cls is Backbone:
        state.pop("mask_token", None)
    refuse_unfit(content.tree, cls, state, path, lambda name: whole or cls is Backbone or "backbone." in name)


def _scores(file: dict[str, Any]) -> dict[str, float]:
    """What the run's `ModelCheckpoint`s watched, at this checkpoint."""
    states = (file.get("callbacks") or {}).values()
    watched = {state.get("monitor"): state.get("current_score") for state in states if isinstance(state, dict)}
    return {name: float(score) for name, score in watched.items() if name and score is not None}


class FromPretrained(LoadsOwnCheckpoints):
    """Mixin for our LightningModules: `from_pretrained` and `save_pretrained`."""

    @classmethod
    def from_pretrained(
        cls, path: str | Path, dictionary: list[str] | None = None, pretrained: str | Path | None = None
    ) -> Self:
        """The module in a file, a directory or on the model hub, see `read_pretrained`.

        Raises:
            FileNotFoundError, ValueError: see `read_pretrained`; or the file holds a module of another class.
        """
        found = read_pretrained(path, dictionary, pretrained)
        held = own_class(found.tree["class_path"])
        if not issubclass(held, cls):
            remedy = (
                f"; {cls.__name__}(checkpoint=...) starts from its backbone" if issubclass(held, FromPretrained) else ""
            )
            raise UserError(f"{path} holds a {held.__name__}, not a {cls.__name__}{remedy}")
        module = build(found.tree)
        load_exactly(module, found.state, str(path))
        module.backbone.licence, module.backbone.tokenizer = found.licence, found.tokenizer
        return module

    def save_pretrained(self, directory: str | Path) -> None:
        """Write `config.json`, `model.safetensors` and a model card, which `from_pretrained` reads.

        Raises:
            FileExistsError: something is there already.
        """
        module: Any = self
        name = type(self).__name__
        content = Content(self.config, module.state_dict(), name, module.backbone.licence, [])
        write_directory(content._replace(tokenizer=module.backbone.tokenizer), directory)
