"""Settings of a model that goes on from a checkpoint, compared with those in the checkpoint."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from d2v_lightning.configurable import is_known, own_class
from d2v_lightning.flavour import rank_zero_warn

# They say how a step is computed, or where weights came from, not which model it is.
_FREE = frozenset({"checkpoint", "compile", "gradient_checkpointing", "on_nonfinite"})
_FROM_DATA = frozenset({"class_names", "mean", "std"})  # arguments that are known only when the data is there


def differences(now: Any, stored: Any, key: str, parameters: Any = None) -> Iterator[tuple[str, Any, Any]]:
    """(key, value now, value stored) wherever two trees differ in what a model computes."""
    if isinstance(now, dict) and isinstance(stored, dict) and "class_path" in now and "class_path" in stored:
        if own_class(now["class_path"]) is not own_class(stored["class_path"]):
            yield key, now["class_path"], stored["class_path"]
            return
        defaults = inspect.signature(own_class(now["class_path"])).parameters
        yield from differences(now.get("init_args") or {}, stored.get("init_args") or {}, key, defaults)
    elif isinstance(now, dict) and isinstance(stored, dict):
        for name in dict.fromkeys([*now, *stored]):
            if name in _FREE:
                continue
            # A key that one of them lacks is from another version: its default then.
            default = getattr((parameters or {}).get(name), "default", None)
            mine, theirs = now.get(name, default), stored.get(name, default)
            if name in _FROM_DATA and None in (mine, theirs):
                continue
            yield from differences(mine, theirs, f"{key}.{name}")
    elif as_lists(now) != as_lists(stored):
        yield key, now, stored


def describe_changes(changes: list[tuple[str, Any, Any]], most: int = 4) -> str:
    """Differences in words: key, value now, value in the checkpoint."""
    words = [f"{key} is {now!r} now and {stored!r} in the checkpoint" for key, now, stored in changes[:most]]
    return "; ".join(words) + (f"; and {len(changes) - most} more" if len(changes) > most else "")


def as_lists(value: Any) -> Any:
    """The value, tuples in it as lists."""
    return [as_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def say_changed_model(now: Any, stored: Any, name: str) -> None:
    """Warn where a module goes on from a checkpoint of another one. Nothing that runs is changed, and of a class that no
    file finds nothing is said.

    Args:
        now: `config` of the module.
        stored: the tree in the checkpoint.
        name: what messages call the checkpoint.
    """
    if not (is_known(now) and is_known(stored)):  # a class of the user's that no file finds, or no tree of ours
        return
    changes = list(differences(now, stored, "model"))
    if changes:
        rank_zero_warn(
            f"going on from {name} with another model: {describe_changes(changes)}. Make the module with "
            "load_from_checkpoint to have the checkpoint's settings"
        )
