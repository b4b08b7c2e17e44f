"""Outputs that are there whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNFINISHED = ".unfinished"


@contextmanager
def atomic_write(target: str | Path) -> Iterator[Path]:
    """The path to write a file or folder at, which takes the place of `target` when the block ends.

    The data is on the disk before the name changes, so a kill or a full disk leaves the old file or the new one. An
    exception removes what was written. The unfinished path has one name for all attempts: what a killed process left is
    written over.

    Args:
        target: file or folder. The folder above it is made. A folder that is there already must be empty.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}{UNFINISHED}")
    remove(unfinished)
    try:
        yield unfinished
        for path in (unfinished, *unfinished.rglob("*")):
            if path.is_file():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        os.replace(unfinished, target)
    except OSError as error:
        if (
            error.errno is not None
        ):  # the system's: a full disk does not say where, and nobody knows the unfinished name
            error.filename = os.fsdecode(error.filename or target).replace(str(unfinished), str(target))
        raise
    except Exception as error:  # libraries in Rust give the number of the system's error in a class of their own
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(target)) from error
    finally:
        remove(unfinished)


def remove(path: Path) -> None:
    """Delete a file or a folder; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
