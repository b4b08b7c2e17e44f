"""Errors that are meant to be read: one line that says what is wrong, where, and what to do."""

from __future__ import annotations


class UserError(ValueError):
    """Something that the reader can mend. Commands print its message as it is, without a traceback.

    Any other exception that leaves this project is a fault of ours, or of the system.
    """


class NotFoundError(UserError, FileNotFoundError):
    """A file, folder, split or data set that was named is not there."""


class ExistsError(UserError, FileExistsError):
    """An output is there already, and would be lost."""


class UsageError(UserError):
    """The command line or a file that it names is wrong; the message is for the person who wrote it."""
