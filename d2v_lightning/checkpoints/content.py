"""What a file of any kind holds, in our terms."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from d2v_lightning.checkpoints.options import Options
from d2v_lightning.checkpoints.own import RUN_KEY, stored_settings
from d2v_lightning.checkpoints.stored_tokenizer import StoredTokenizer
from d2v_lightning.checkpoints.tables import Row, State
from d2v_lightning.configurable import Tree, own_class
from d2v_lightning.nn.encoders import TextEncoder
from d2v_lightning.support.errors import UserError

NON_COMMERCIAL = "cc-by-nc-4.0"  # Meta's image weights, of 1.0 and of 2.0
FREE = "mit"  # Meta's weights for speech and text, published with fairseq


class Content(NamedTuple):
    """A file's module as a constructor `tree` and its `state` dict.

    Attributes:
        kind: what the file is, for people.
        licence: of the weights, where they are the published ones; SPDX.
        rows: what became of each of its weights.
        data: the datamodule of the run that wrote it, where that is known.
        metrics: measured by that run on held-out data.
        tokenizer: that a text model was trained with, where the file has it.
        normalize: whether a speech model heard clips of mean 0 and variance 1, where neither its tree nor its data say so.
            What pictures are normalised with is in the tree, see `ImageEncoder`.
        path: of the file, as messages call it.
        options: a file of Meta's own options, "cfg" of fairseq's or "args" of BEiT's.
        trainer: settings of the Trainer that wrote a checkpoint of ours.
    """

    tree: Tree
    state: State
    kind: str
    licence: str | None
    rows: list[Row]
    data: Tree | None = None
    metrics: Mapping[str, float] = MappingProxyType({})
    tokenizer: StoredTokenizer | None = None
    normalize: bool | None = None
    path: str = ""
    options: Options | None = None
    trainer: Mapping[str, Any] = MappingProxyType({})

    @property
    def data_arguments(self) -> Tree:
        """Arguments of the datamodule that it was trained with, as far as they are known."""
        key = f"{RUN_KEY}.data"
        tree = stored_settings(self.data, self.path, key)
        return stored_settings(tree.get("init_args"), self.path, f"{key}.init_args")

    @property
    def takes_normalized(self) -> bool | None:
        """See `load_normalize`."""
        own: bool | None = (self.tree["init_args"] | self.data_arguments).get("normalize")
        if own is not None and not isinstance(own, bool):
            raise UserError(f"{self.path}: its normalize is {own!r}: it must be true or false")
        return self.normalize if own is None else own

    def part(self, prefix: str) -> State:
        """The weights below a prefix, the prefix cut off.

        Raises:
            ValueError: there are none.
        """
        part = {name[len(prefix) :]: tensor for name, tensor in self.state.items() if name.startswith(prefix)}
        if not part:
            raise UserError(f"{self.path} holds a {self.tree['class_path']}, which has no {prefix.rstrip('.')}")
        return part

    def of_modality(self, modality: str | None) -> Content:
        """What a file of several modalities holds of one; a file of one, for which `modality` is None, as it is.

        Raises:
            ValueError: the file is of several and none of them is named, or it has none of that name.
        """
        held = self.tree["init_args"].get("modalities", {})
        if modality is None and not held:
            return self
        if modality not in held:
            there = (
                f"choose from its modalities, {', '.join(held)}"
                if held
                else "it is of one modality: leave modality out"
            )
            raise UserError(f"modality is {modality!r} for {self.path}: {there}")
        encoder = held[modality]["init_args"]["student"]["init_args"]["backbone"]["init_args"]["encoder"]
        tokenizer = self.tokenizer if issubclass(own_class(encoder["class_path"]), TextEncoder) else None
        state = self.part(f"modalities.{modality}.")
        key = f"{RUN_KEY}.data.init_args.datamodules"
        data = stored_settings(self.data_arguments.get("datamodules"), self.path, key).get(str(modality))
        return self._replace(tree=held[modality], state=state, tokenizer=tokenizer, data=data)
