"""Errors that are meant to be read: one line that says what is wrong, where, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LONGEST = 1500  # characters of a message: what a file holds may be longer than any line


class UserError(ValueError):
    """Something that the reader can mend. Commands print its message as it is, without a traceback.

    Any other exception that leaves this project is a fault of ours, or of the system.
    """

    def __str__(self) -> str:
        text = super().__str__()
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"


class NotFoundError(UserError, FileNotFoundError):
    """A file, folder, split or data set that was named is not there."""


class ExistsError(UserError, FileExistsError):
    """An output is there already, and would be lost."""


class UsageError(UserError):
    """The command line or a file that it names is wrong; the message is for the person who wrote it."""


def flat(text: object) -> str:
    """What a library says, on one line."""
    return " ".join(str(text).split())


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Put the name of a file before a refusal that does not have it.

    Raises:
        UserError: as was raised inside, of the same class.
    """
    try:
        yield
    except UserError as error:
        if str(error).startswith(str(path)):
            raise
        raise type(error)(f"{path}: {error}") from error


def at_least(least: int, **given: int | None) -> None:
    """Raises ValueError where an argument is set and below `least`."""
    for name, value in given.items():
        if value is not None and value < least:
            raise UserError(f"{name} {value}: permitted is {least} or more")


def probabilities(**given: float) -> None:
    """Raises ValueError where an argument is not between 0 and 1."""
    for name, value in given.items():
        if not 0 <= value <= 1:
            raise UserError(f"{name} {value}: it is a probability, permitted is 0 to 1")


def reason_of(error: Exception) -> str:
    """The reason for a failure, for a list of such. The system's own messages repeat the path, which is left out."""
    reason = getattr(error, "strerror", None) or str(error)
    return flat(reason) or type(error).__name__
