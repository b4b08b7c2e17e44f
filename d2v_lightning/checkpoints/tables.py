"""Name tables: one mapping of our weight names to another format's, read in both directions.

A table maps a name of ours to the names of the tensors that it is made of, joined along the first dimension. In both, "#"
stands for a block's or layer's number and "#+1" for the number after it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from d2v_lightning.support.errors import UserError
from d2v_lightning.support.tensor_files import REAL

State = dict[str, Tensor]
Table = Mapping[str, tuple[str, ...]]
Names = dict[str, tuple[str, ...]]


class Row(NamedTuple):
    """What became of one weight of a file: `how` it was taken over, and `ours`, its new name, or why it was dropped."""

    theirs: str
    shape: tuple[int, ...]
    how: Literal["matched", "converted", "dropped"]
    ours: str


_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def weight_and_bias(ours: str, *theirs: str) -> Names:
    """Table rows for the weight and the bias of one module."""
    return {f"{ours}.{part}": tuple(f"{name}.{part}" for name in theirs) for part in ("weight", "bias")}


def their_names(ours: str, table: Table) -> tuple[str, ...]:
    """What `table` calls a weight of ours.

    Raises:
        KeyError: it has no place in the format.
    """
    number = _NUMBER.search(ours)
    if ours in table or number is None:
        return table[ours]
    pattern = f"{ours[: number.start()]}#{ours[number.end() :]}"
    following = str(int(number[0]) + 1)
    return tuple(theirs.replace("#+1", following).replace("#", number[0]) for theirs in table[pattern])


def to_ours(
    own: Mapping[str, Tensor], theirs: State, table: Table, path: str, rows: list[Row] | None = None, below: str = ""
) -> State:
    """Weights of a file under our names; what is used is taken out of `theirs`.

    Args:
        own: state dict of the module that wants them; only its names and shapes are read.
        theirs: what is left of the file.
        path: what messages call the file.
        rows: gets a row for each weight that is used, its name of ours with `below` before it.

    Raises:
        ValueError: a weight is missing, of another shape, or holds NaN or infinity.
    """
    state, missing = {}, []
    for ours, wanted in own.items():
        names = their_names(ours, table)
        absent = [name for name in names if name not in theirs]
        if absent:
            missing += absent
            continue
        parts = [theirs.pop(name) for name in names]
        for name, part in zip(names, parts, strict=True):
            if part.dtype not in REAL:
                raise UserError(f"{path}: weight {name!r} holds {part.dtype}, where real numbers are expected")
            if part.shape != parts[0].shape:
                raise UserError(f"{path}: weight {name!r} has shape {tuple(part.shape)}, {names[0]!r} has another")
        tensor = torch.cat(parts) if len(parts) > 1 and parts[0].dim() else parts[0]
        if _squeezed(tensor) != _squeezed(wanted):
            raise UserError(
                f"{path}: weight {names[0]!r} has shape {tuple(parts[0].shape)}, which does not fit {tuple(wanted.shape)}"
            )
        if not torch.isfinite(tensor).all():
            raise UserError(f"{path}: weight {names[0]!r} holds NaN or infinity")
        state[ours] = tensor.reshape(wanted.shape).to(wanted.dtype)
        if rows is not None:
            same = parts[0].shape == wanted.shape and tensor.dtype == wanted.dtype
            how: Literal["matched", "converted"] = "matched" if same else "converted"
            rows += [Row(name, tuple(part.shape), how, below + ours) for name, part in zip(names, parts, strict=True)]
    if missing:
        raise UserError(f"{path}: weights missing {missing[:3]}, not expected {sorted(theirs)[:3]}")
    return state


def needed_of(own: Mapping[str, Tensor], theirs: State, table: Table, whole: bool) -> Mapping[str, Tensor]:
    """Which weights of a student a file must have: all, or where it need not be `whole`, the backbone's and those it has."""
    if whole:
        return own
    return {
        name: wanted
        for name, wanted in own.items()
        if name.startswith("backbone.") or all(other in theirs for other in their_names(name, table))
    }


def drop(theirs: State, name: str, why: str, rows: list[Row]) -> None:
    """Take a weight out of what is left of a file, and say why it is not needed."""
    rows.append(Row(name, tuple(theirs.pop(name).shape), "dropped", why))


def to_theirs(state: Mapping[str, Tensor], table: Table, flat: Mapping[str, Any] | None = None) -> State:
    """Our weights under the other format's names, in the same memory.

    Args:
        flat: shapes of tensors that have other dimensions of size 1 there.
    """
    theirs = {}
    for ours, tensor in state.items():
        names = their_names(ours, table)
        for name, part in zip(names, tensor.detach().chunk(len(names)), strict=True):
            theirs[name] = part if flat is None or name not in flat else part.reshape(flat[name])
    return theirs


def prefixed(table: Table, ours: str = "", theirs: str = "") -> Names:
    """The table of a module that sits below a prefix on either side."""
    return {ours + name: tuple(theirs + other for other in others) for name, others in table.items()}


def depth_of(state: Mapping[str, Any], prefix: str) -> int:
    """Numbered modules below `prefix`: 1 + the highest number.

    Raises:
        ValueError: that is more than there are weights, so that some must be missing.
    """
    numbers = [int(match[1]) for name in state if (match := re.match(re.escape(prefix) + r"(\d{1,9})\.", name))]
    depth = 1 + max(numbers, default=-1)
    if depth > len(numbers):
        raise UserError(f"weights below '{prefix}{depth - 1}' are there, but not all below lower numbers")
    return depth


def _squeezed(tensor: Tensor) -> list[int]:
    return [size for size in tensor.shape if size != 1]
