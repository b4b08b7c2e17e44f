"""Names of a head's classes in a configuration of transformers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from d2v_lightning.support.errors import UserError


def labels_of(config: Any, outputs: int, directory: Path) -> list[str] | None:
    """Names of a head's classes; None where they are the library's placeholders.

    Raises:
        ValueError: not each of the `outputs` has a name, or they do not say one class of several.
    """
    kind = getattr(config, "problem_type", None)
    if kind is not None and kind != "single_label_classification":
        raise UserError(f"{directory}/config.json: problem_type is {kind!r}: ours says one class of several")
    if sorted(config.id2label) != list(range(outputs)):
        raise UserError(
            f"{directory}/config.json: id2label names {sorted(config.id2label)[:9]}, where 0 to {outputs - 1} are expected"
        )
    names = [str(name) for _, name in sorted(config.id2label.items())]
    return None if all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names
