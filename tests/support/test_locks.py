"""Locks: one process at a time, whatever becomes of it; where there are none, a word."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from d2v_lightning.support.locks import only_one, only_one_in


def test_a_lock_that_does_not_fit_on_the_disk_leaves_nothing(
    tmp_path: Path, small_files: Callable[[int], None]
) -> None:
    small_files(0)
    with pytest.raises(OSError, match="too large"), only_one(tmp_path / ".lock", "x", "output"):
        pass
    assert not list(tmp_path.iterdir())


def test_where_there_are_no_locks_a_run_says_so_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.lockf", none)
    with pytest.warns(UserWarning, match="without locks"), only_one_in(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
