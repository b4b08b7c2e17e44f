"""How every command ends: well, with one line for what its user can mend, or with the traceback of a fault of ours."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import torch

from d2v_lightning.commands.ending import end, listen
from d2v_lightning.flavour import fabric, pl
from d2v_lightning.support.errors import UsageError, UserError, flat

USAGE, REFUSED = 2, 1  # exit status: the command line is wrong; something else is
_WEIGHTS_DO_NOT_FIT = "Error(s) in loading state_dict"
# Of gloo, of NCCL, and of torch's store that the processes meet in.
_PEER_IS_GONE = ("/gloo/transport/", "remote process exited", "DistNetworkError", "DistStoreError")
_SMALLER = "choose a smaller batch; effective_batch makes up for it by accumulation"
_ADVICE = {
    errno.ENOSPC: "free some space, or choose another disk",
    errno.EDQUOT: "free some space, or choose another disk",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "choose another folder",
    errno.EACCES: "change its permissions, or choose another path",
    errno.EPERM: "change its permissions, or choose another path",
    errno.ENOENT: "it must be there, and stay until the command has ended",
    errno.ENOTDIR: "a file stands where a folder is needed: move it, or choose another path",
    errno.EEXIST: "a file stands where a folder is needed: move it, or choose another path",
    errno.EISDIR: "give the path of a file",
    errno.EMFILE: "raise the limit on open files (ulimit -n), or lower data.num_workers",
    errno.ENFILE: "raise the limit on open files (ulimit -n), or lower data.num_workers",
    errno.EIO: "look at the disk or the network",
    errno.ESTALE: "look at the disk or the network",
}


def run_command(command: Callable[[], object], refused: int = REFUSED) -> int:
    """Run a command to its end; one line where it cannot go on, with a traceback only where `D2V_DEBUG` is 1.

    A reader that has gone (`| head`) does not end the command: what it prints is dropped from then on.

    Args:
        command: to run.
        refused: exit status of a refusal.

    Returns:
        The exit status: 0, 2 for a mistake on the command line, `refused` for any other, 128 + the signal's number.

    Raises:
        Exception: a fault of ours, as it is.
    """
    listen()
    with _printing_to_nobody_is_harmless():
        try:
            try:
                command()
            finally:
                end()
        except KeyboardInterrupt:  # before the Trainer's own handling, and before there is anything to save
            print("stopped by Ctrl-C", file=sys.stderr)
            return 128 + signal.SIGINT
        except pl.utilities.exceptions.SIGTERMException:  # a SystemExit without a code, which would pass for success
            return 128 + signal.SIGTERM
        except SystemExit as error:
            if isinstance(error.__context__, KeyboardInterrupt):  # Lightning's exit status for it is 1
                return 128 + signal.SIGINT
            raise
        except Exception as error:
            said = one_line(error)
            if said is None:
                raise
            if os.environ.get("D2V_DEBUG") == "1":
                traceback.print_exception(error)
            rank = int(os.environ.get("LOCAL_RANK", "0"))
            print(f"error: {said}" if rank == 0 else f"[rank {rank}] error: {said}", file=sys.stderr)
            return USAGE if isinstance(error, UsageError) else refused
    return 0


def one_line(error: BaseException) -> str | None:
    """What a person can mend, with what is safe (the error's notes); None for a fault of ours."""
    said = _said(error)
    if said is None:
        return None
    for note in getattr(error, "__notes__", []):
        said = f"{said.removesuffix('.')}. {note}"
    return said


def _said(error: BaseException) -> str | None:
    text = str(error)
    if isinstance(error, UserError):
        return text
    if isinstance(error, OSError):
        return system_error(error)
    if isinstance(error, ImportError) and error.name is None:  # raised by hand: a package that is to be installed
        return flat(text)
    if isinstance(error, fabric.utilities.exceptions.MisconfigurationException):
        return flat(text)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text:
        return f"not enough memory{': ' if text else ''}{text.partition(chr(10))[0].rstrip('.')}: {_SMALLER}"
    if isinstance(error, RuntimeError):
        if any(words in f"{type(error).__name__}: {text}" for words in _PEER_IS_GONE):
            reason = re.sub(r"^\[\S+\] ", "", text.partition("\n")[0]).partition(". ")[0]
            return (
                f"another process of this run ended or cannot be reached ({reason[:200]}): look for its own line; without "
                "one the system may have killed it, e.g. for its memory"
            )
        return _runtime_error(text)
    return None


def _runtime_error(text: str) -> str | None:
    if text.startswith(_WEIGHTS_DO_NOT_FIT):
        first = text.splitlines()[1].strip()
        return f"the checkpoint's weights do not fit the model: {first} Leave --model and --config out to use its own"
    if text.startswith("Early stopping conditioned on metric"):
        return flat(text)
    if text.startswith("DataLoader worker"):
        how = re.search(r"killed by signal: ([\w ]+)|exit code \d+", text)
        return (
            f"a loading process ended unexpectedly ({how[1] or how[0] if how else 'no reason is known'}): the memory may be"
            f" full, or what the processes share{_shared_memory()}. Lower data.num_workers, or raise the limits"
            " (ulimit -n; Docker: --shm-size=8g)"
        )
    if any(words in text for words in ("shared memory", "ancdata", "Too many open files")):
        # no room in it; no file descriptor left to hand it over
        return (
            f"{flat(text).rstrip('.')}: lower data.num_workers, or raise the limits (ulimit -n; Docker: --shm-size=8g)"
        )
    return None


def system_error(error: OSError) -> str:
    """An error of the system in one line: path, reason, what to do."""
    path = error.filename if error.filename is not None else error.filename2
    reason = error.strerror or flat(error) or type(error).__name__
    where = "" if path is None or isinstance(path, int) else f"{os.fsdecode(path)}: "
    advice = _ADVICE.get(error.errno or 0)
    return f"{where}{reason}{f': {advice}' if advice else ''}"


def _shared_memory() -> str:
    try:
        room = os.statvfs("/dev/shm")
    except OSError:  # a system without it
        return ""
    free, whole = (blocks * room.f_frsize / 2**20 for blocks in (room.f_bavail, room.f_blocks))
    return f" (/dev/shm: {free:,.0f} of {whole:,.0f} MB free)"


class _Quiet:
    """A stream that drops what it is given once nobody reads it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._gone = stream, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._try(lambda: self._stream.write(text), len(text))

    def flush(self) -> None:
        self._try(self._stream.flush, None)

    def _try(self, act: Callable[[], Any], otherwise: Any) -> Any:
        if not self._gone:
            try:
                return act()
            except BrokenPipeError:
                self._gone = True
                # What is left in its buffer has to go somewhere when Python ends.
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)
        return otherwise


@contextmanager
def _printing_to_nobody_is_harmless() -> Iterator[None]:
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Quiet(before[0]), _Quiet(before[1])
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
