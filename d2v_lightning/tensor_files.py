"""Files of `torch.save`, read as tensors and plain data: nothing in them is executed, nothing that they name is imported."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import scalar

from d2v_lightning.errors import NotFoundError, UserError

_CHECKPOINTS_BEGIN_WITH = (b"PK", b"\x80")  # a zip archive; a pickle, as torch before 1.6 wrote
# What torch's reader runs into where bytes are missing or make no sense.
_DAMAGE = (
    *(RuntimeError, EOFError, OSError, zipfile.BadZipFile, LookupError, AttributeError, TypeError, ValueError),
    *(AssertionError, ArithmeticError, MemoryError, struct.error, NotImplementedError),
)


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
    try:
        archive = zipfile.is_zipfile(path)
        inert = _look_through(path, checked=map_location != "meta") if archive else []
        with torch.serialization.safe_globals([*_HARMLESS, *inert]):
            return torch.load(path, map_location=map_location, weights_only=True, mmap=mapped and archive)
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|global|class) ([\w.]+)", str(error))
        what = f" (it names {named[1]})" if named else ""
        raise UserError(f"{path} holds more than tensors and plain data{what} and was not loaded") from error
    except _DAMAGE as error:
        reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise UserError(f"{path} is damaged or no checkpoint: {reason}") from error


def _look_through(path: str | Path, checked: bool) -> list[tuple[type, str]]:
    """The names in an archive that are read as `Inert`.

    `torch.save` packs nothing, so an archive that unpacks to more than its size was made to fill the memory; and it writes
    checksums, which torch's reader never looks at.
    """
    with zipfile.ZipFile(path) as archive:
        inside = sum(entry.file_size for entry in archive.infolist())
        if inside > os.path.getsize(path):
            raise UserError(f"it unpacks to {inside:,} bytes, more than its {os.path.getsize(path):,}")
        damaged = archive.testzip() if checked else None
    if damaged is not None:
        raise UserError(f"its entry {damaged} is not as it was written")
    named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    return [(Inert, name) for name in named if _INERT.fullmatch(name)]
