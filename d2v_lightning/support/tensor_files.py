"""Files of `torch.save`, read as tensors and plain data: nothing in them is executed, nothing that they name is imported."""

from __future__ import annotations

import argparse
import functools
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import scalar
from torch import Tensor

from d2v_lightning.support.errors import NotFoundError, UserError

_CHECKPOINTS_BEGIN_WITH = (b"PK", b"\x80")  # a zip archive; a pickle, as torch before 1.6 wrote
# What torch's reader runs into where bytes are missing or make no sense.
_DAMAGE = (
    *(RuntimeError, EOFError, OSError, zipfile.BadZipFile, LookupError, AttributeError, TypeError, ValueError),
    *(AssertionError, ArithmeticError, MemoryError, struct.error, NotImplementedError),
)


_LISTS = (list, tuple, set, frozenset)
_DEEPEST, _MOST = 400, 1_000_000  # of containers in a file: levels, and how many they are when written out

# Numbers that weights are stored as.
REAL = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def _refuse_endless(content: Any) -> None:
    """Refuse containers that hold themselves, or each other so often that nobody could walk through them.

    Raises:
        ValueError: they do.
    """
    found: dict[int, tuple[int, int]] = {}  # by identity: how many containers it is when written out, how deep
    around: set[int] = set()
    waiting = [(content, False)]
    while waiting:
        value, walked = waiting.pop()
        if id(value) in found:
            continue
        inside = _containers_in(value)
        if not walked:
            if id(value) in around:
                raise UserError("it holds a list or mapping that holds itself")
            around.add(id(value))
            waiting += [(value, True), *((item, False) for item in inside)]
            continue
        around.discard(id(value))
        sizes, depths = zip(*(found[id(item)] for item in inside), strict=True) if inside else ((), ())
        found[id(value)] = 1 + sum(sizes), 1 + max(depths, default=0)
        if found[id(value)][0] > _MOST or found[id(value)][1] > _DEEPEST:
            raise UserError("its lists and mappings are nested without end")


def _containers_in(value: Any) -> list[Any]:
    if isinstance(value, Inert):  # other attributes of these lead back up
        inside = [*value.given, *(item for name, item in vars(value).items() if name in ("_content", "_val", "fields"))]
    elif isinstance(value, argparse.Namespace):
        inside = list(vars(value).values())
    else:
        inside = list(value.values() if isinstance(value, Mapping) else value if isinstance(value, _LISTS) else ())
    return [item for item in inside if isinstance(item, (Mapping, Inert, argparse.Namespace, *_LISTS))]


class Weights(dict[str, Tensor]):
    """The named tensors of a file; one that is looked for and not there is a `ValueError`."""

    def __missing__(self, name: str) -> Tensor:
        raise UserError(f"weight {name!r} is missing")

    def sizes(self, name: str, count: int) -> tuple[int, ...]:
        """The shape of a weight, which must have `count` dimensions, none of them empty."""
        sizes = tuple(self[name].shape)
        if len(sizes) != count or 0 in sizes:
            raise UserError(f"weight {name!r} has shape {sizes}, where {count} dimensions are expected")
        return sizes


class Inert:
    """Stands for an object of a foreign class: what was given to its constructor, and its plain attributes."""

    given: tuple[Any, ...] = ()

    def __init__(self, *given: Any) -> None:
        self.given = given


# Data that Meta's files hold besides tensors and containers: options as a Namespace, numbers of numpy.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    (scalar, "numpy.core.multiarray.scalar"),
    (scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(kind)) for kind in "?bhilqBHILQefd"},
]
# Classes of the tools that wrote them, and those with which these describe types: each is read as an `Inert`.
_INERT = re.compile(
    r"(omegaconf|fairseq|hydra|examples\.data2vec|deepspeed)\.[\w.]+|typing\.\w+|pathlib\.\w+"
    r"|_operator\.getitem|collections\.defaultdict|builtins\.(dict|list|tuple|str|int|float|bool|object)"
    r"|numpy\.(_?core\.multiarray\._reconstruct|ndarray)|numpy\._core\.multiarray\._reconstruct"
)


def read_tensors(path: str | Path, map_location: Any = "cpu", mapped: bool = False) -> Any:
    """`torch.load` that never executes code, with one clear line for each way in which a file can be bad.

    Args:
        path: file of `torch.save`.
        map_location: device for the tensors.
        mapped: leave them in the file until they are read; it must then stay as it is.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, damaged, no file of `torch.save`, or holds objects of other classes than the few above.
    """
    if not os.path.isfile(path):
        raise NotFoundError(f"no checkpoint at {path}: give the path of a file that exists")
    with open(path, "rb") as file:
        start = file.read(2)
    if not start.startswith(_CHECKPOINTS_BEGIN_WITH):
        what = f"it begins with {start!r}, as no file of torch.save does" if start else "it is empty"
        raise UserError(f"{path} is damaged or no checkpoint: {what}")
    compare_checksums(path)
    try:
        archive = zipfile.is_zipfile(path)
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path) if archive else []
        inert = [(Inert, name) for name in names if _INERT.fullmatch(name)]
        with torch.serialization.safe_globals([*_HARMLESS, *inert]):
            content = torch.load(path, map_location=map_location, weights_only=True, mmap=mapped and archive)
        _refuse_endless(content)
        return content
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|global|class) ([\w.]+)", str(error))
        what = f" (it names {named[1]})" if named else ""
        raise UserError(f"{path} holds more than tensors and plain data{what} and was not loaded") from error
    except _DAMAGE as error:
        reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise UserError(f"{path} is damaged or no checkpoint: {reason}") from error


def named_tensors(state: Any, path: str) -> Weights:
    """A file's weights, under the names of the model itself.

    Raises:
        ValueError: something else is among them.
    """
    if not isinstance(state, Mapping):
        raise UserError(f"{path}: its weights are a {type(state).__name__}, where named tensors are expected")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise UserError(f"{path}: among its weights is {name!r}, which is no tensor but {type(tensor).__name__}")
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            raise UserError(
                f"{path}: weight {name!r} is sparse, quantised or without numbers, which no released one is"
            )
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise UserError(f"{path}: weight {name!r} has shape {tuple(tensor.shape)} and fewer numbers than that")
    try:
        return Weights(unwrapped(state))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def unwrapped(state: Mapping[Any, Any]) -> dict[Any, Any]:
    """Weights under the names of the model itself: one inside another, or compiled, is saved with their names before its own.

    Raises:
        ValueError: two weights have the same name without these.
    """
    named = {_uncompiled(name): tensor for name, tensor in state.items()}
    if len(named) < len(state):
        bare = [_uncompiled(name) for name in state]
        twice = next(name for name in named if bare.count(name) > 1)
        raise UserError(f"it has the weight {twice!r} twice, compiled ('_orig_mod.') and not")
    for wrapper in ("module.", "model."):
        own = [str(name) for name, tensor in named.items() if isinstance(tensor, Tensor)]
        if own and all(name.startswith(wrapper) for name in own):
            named = {str(name).removeprefix(wrapper): tensor for name, tensor in named.items()}
    return named


def _uncompiled(name: Any) -> Any:
    return name.replace("_orig_mod.", "") if isinstance(name, str) else name


def compare_checksums(path: str | Path) -> None:
    """Compare every byte of an archive of `torch.save` with its checksums, which torch's reader never looks at.

    Files of torch before 1.6 have none. A process reads a file once for this, however often it asks.

    Raises:
        ValueError: the file is not as it was written.
    """
    if os.path.isfile(path) and zipfile.is_zipfile(path):
        stat = os.stat(path)
        reason = _damage(os.path.realpath(path), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        if reason is not None:
            raise UserError(f"{path} is damaged or no checkpoint: {reason}")


@functools.lru_cache(maxsize=64)
def _damage(path: str, *state_of_the_file: int) -> str | None:
    """What is wrong with an archive; None where nothing is."""
    try:
        with zipfile.ZipFile(path) as archive:
            inside = sum(entry.file_size for entry in archive.infolist())
            # torch packs nothing: an archive that unpacks to more than its size was made to fill the memory.
            if inside > os.path.getsize(path):
                return f"it unpacks to {inside:,} bytes, more than its {os.path.getsize(path):,}"
            damaged = archive.testzip()
    except _DAMAGE as error:
        return str(error) or type(error).__name__
    return None if damaged is None else f"its entry {damaged} is not as it was written"
