"""What of a run's settings is given to others with its weights: everything but where files lie on a computer."""

from __future__ import annotations

import os
import re
from typing import Any

from d2v_lightning.configurable import Tree

# Arguments that are always places: of our datamodules, of `BeamSearch`, of callbacks.
PLACES = frozenset(
    (
        "root",
        "files",
        "val_files",
        "predict_files",
        "predict_file",
        "cache_dir",
        "lm",
        "lexicon",
        "output",
        "checkpoint",
    )
)
# Arguments that are public names, or places.
NAMES = frozenset(("dataset", "tokenizer", "train_split", "val_split", "test_split"))
# Arguments that are text and never a place, whatever it looks like: AudioSet calls a class "/m/09x0r".
TEXTS = frozenset(("class_names", "classes", "vocabulary", "class_path"))
_PUBLIC = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")  # as on the hub: NAME or OWNER/NAME
_FILE = re.compile(r"\.(arrow|csv|json|jsonl|parquet|tsv|txt|zip|gz|tar)$", re.IGNORECASE)
_PLACE = re.compile(r"[~.]{0,2}[/\\]|~|[A-Za-z]:[/\\]|file:|.*[/\\].*[/\\]")


def shareable(tree: Any) -> Any:
    """Settings without the arguments that are places; of lists of names, without the entries that are.

    What has two slashes, or begins as a path does, is one whatever its argument is called.

    Args:
        tree: plain data, nested.
    """
    if isinstance(tree, list):
        return [shareable(item) for item in tree if not _is_place("", item)]
    if not isinstance(tree, dict):
        return tree
    kept = {name: value for name, value in tree.items() if name in TEXTS or not _is_place(str(name), value)}
    return {name: _without(name, value) for name, value in kept.items()}


def _without(name: str, value: Any) -> Any:
    if name in TEXTS:
        return value
    if name in NAMES and isinstance(value, list):
        return [item for item in value if not _is_place(name, item)]
    return shareable(value)


def _is_place(name: str, value: Any) -> bool:
    """Whether an argument says where something lies; one that is not set says nothing, and stays."""
    if name in PLACES:
        return value is not None
    if not isinstance(value, str):
        return False
    if name in NAMES:
        there = name in ("dataset", "tokenizer") and os.path.exists(os.path.expanduser(value))
        return there or not _PUBLIC.fullmatch(value) or _FILE.search(value) is not None
    return _PLACE.match(value) is not None


def decoder_with_files(tree: Tree) -> Tree | None:
    """The decoder of a speech model in a constructor tree, where it reads a language model or a lexicon."""
    decoder = (tree.get("init_args") or {}).get("decoder")
    options = decoder.get("init_args") if isinstance(decoder, dict) else None
    reads = isinstance(options, dict) and any(options.get(name) is not None for name in ("lm", "lexicon"))
    return decoder if reads else None
