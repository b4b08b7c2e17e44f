"""What a checkpoint of ours says that its pictures were normalised with, and a run that goes on or is tested."""

from __future__ import annotations

from typing import Any

from torch import nn

from d2v_lightning.configurable import Tree
from d2v_lightning.nn.encoders.image import ImageEncoder
from d2v_lightning.nn.normalization import normalization_of
from d2v_lightning.support.errors import UserError, naming


def take_over_normalization(module: nn.Module, tree: Tree, path: str) -> None:
    """Give each image encoder of a module what a file holds for it, where nobody has told it before.

    Args:
        module: into which the file's weights are loaded. Its data was set up before and has told it.
        tree: the file's constructor tree.
        path: what messages call the file.

    Raises:
        ValueError: the file's is another, or it is damaged.
    """
    encoders = [(name, part) for name, part in module.named_modules() if isinstance(part, ImageEncoder)]
    for name, part in encoders:
        stored = _arguments(tree, name)
        with naming(path):
            theirs = normalization_of(stored.get("mean"), stored.get("std"), part.in_channels)
        if theirs is None:
            continue
        if part.normalization is not None and not part.normalization.agrees(theirs):
            raise UserError(
                f"{path} was trained on pictures of {theirs}, this run has {part.normalization}: give the file's as "
                "data.mean and data.std (for a classifier model.mean and model.std)"
            )
        part.normalization = theirs


def _arguments(tree: Any, name: str) -> Tree:
    """Constructor arguments of the part of that name, "student.backbone.encoder"; none where the tree has no such part."""
    for step in name.split("."):
        inside = tree.get("init_args", tree) if isinstance(tree, dict) else {}
        tree = inside.get(step) if isinstance(inside, dict) else None
    found = tree.get("init_args") if isinstance(tree, dict) else None
    return found if isinstance(found, dict) else {}
