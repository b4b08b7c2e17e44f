"""What a foreign file holds, in our terms."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from d2v_lightning.checkpoints.stored_tokenizer import StoredTokenizer
from d2v_lightning.checkpoints.tables import Row, State
from d2v_lightning.configurable import Tree

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
        normalize: whether a speech model heard clips of mean 0 and variance 1, where a foreign file says so.
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
