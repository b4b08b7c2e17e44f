"""Plain data of a file, compared with the form that is expected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from d2v_lightning.support.errors import UserError
from d2v_lightning.support.tensor_files import REAL


def compare_form(found: Any, form: Any, key: str) -> None:
    """Compare a tree of plain data with one of the form that is expected. Nothing below a "state_dict" is compared.

    Raises:
        ValueError: a part is missing or of another kind; `key` says where it stands in which file.
    """
    if isinstance(form, Mapping):
        found = as_mapping(found, key)
        for name, below in form.items():
            if str(name).rpartition(".")[2] == "state_dict":
                as_mapping(found.get(name, {}), f"{key}.{name}")
            elif name in found:
                compare_form(found[name], below, f"{key}.{name}")
            else:
                raise UserError(f"{key} has no {name}: it was not written by this project")
    elif isinstance(form, (list, tuple)):
        if not isinstance(found, (list, tuple)) or len(found) != len(form):
            raise UserError(f"{key} is {short(found)}, where {len(form)} values are expected")
        for place, below in enumerate(form):
            compare_form(found[place], below, f"{key}.{place}")
    elif isinstance(form, bool):
        if not isinstance(found, bool):
            raise UserError(f"{key} is {short(found)}, where true or false is expected")
    elif isinstance(form, str):
        if not isinstance(found, str):
            raise UserError(f"{key} is {short(found)}, where text is expected")
    elif isinstance(form, int):
        if not isinstance(found, int) or isinstance(found, bool) or found < 0:
            raise UserError(f"{key} is {short(found)}, where a count is expected")
    elif isinstance(form, float) and not _is_number(found):
        raise UserError(f"{key} is {short(found)}, where a number is expected")


def as_mapping(value: Any, key: str) -> Mapping[Any, Any]:
    """The value, which must be names and values; `key` says where it stands in which file."""
    if not isinstance(value, Mapping):
        raise UserError(f"{key} is {short(value)}, where names and values are expected")
    return value


def as_list(value: Any, key: str) -> list[Any]:
    """The value, which must be a list; `key` says where it stands in which file."""
    if not isinstance(value, list):
        raise UserError(f"{key} is {short(value)}, where a list is expected")
    return value


def short(value: Any) -> str:
    """A value for a message: plain data cut to 60 characters, of anything else the type."""
    plain = value is None or isinstance(value, (bool, int, float, str))
    return repr(value)[:60] if plain else f"of type {type(value).__name__}"


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and value.dtype in REAL and bool(torch.isfinite(value))
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value - value == 0
