"""One writer at a time: a lock that dies with its process, whatever kills it."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from d2v_lightning.flavour import rank_zero_warn
from d2v_lightning.support.errors import UserError

LOCK = ".lock"
_TAKEN = (errno.EACCES, errno.EAGAIN)


@contextmanager
def only_one_in(folder: str | Path) -> Iterator[None]:
    """Holds a folder, which is made, for this process.

    The lock is one of the system's on a file in the folder, so nothing of it is left where the process is killed. Processes
    that this one forks do not share it.

    Raises:
        ValueError: another process holds it.
        OSError: the folder cannot be written to.
    """
    with only_one(Path(folder) / LOCK, str(folder), "folder"):
        yield


@contextmanager
def only_one(path: Path, what: str, kind: str) -> Iterator[None]:
    """Holds a file of its own, which stands for something that one process at a time may write.

    Args:
        path: of the file. It is removed in the end; the folder above it is made.
        what: is written, for messages.
        kind: the word for it.

    Raises:
        ValueError, OSError: see `only_one_in`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _locked(path, what, kind)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before the lock goes: whoever opened it meanwhile sees that it is another file
        if descriptor is not None:
            os.close(descriptor)


def _locked(path: Path, what: str, kind: str) -> int | None:
    """The open file; None where the file system has no locks."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(descriptor, 200).decode(errors="replace").strip()
            os.close(descriptor)
            if error.errno not in _TAKEN:
                rank_zero_warn(
                    f"{what} is on a file system without locks ({error.strerror}): see to it that no other run "
                    "writes there"
                )
                return None
            raise UserError(
                f"{what} is in use by another run{f' ({holder})' if holder else ''}: wait for its end, or choose another "
                f"{kind}"
            ) from error
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                break
        os.close(descriptor)  # of a run that has ended in this moment
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    except OSError as error:  # a full disk does not say where
        path.unlink(missing_ok=True)
        os.close(descriptor)
        error.filename = str(path.parent)
        raise
    return descriptor
