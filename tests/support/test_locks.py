"""Locks: one process at a time, whatever becomes of it; where there are none, a word."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from d2v_lightning.support.errors import UserError
from d2v_lightning.support.locks import LOCK, only_one, only_one_in


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


def test_a_holder_is_named_and_its_lock_ends_with_it(tmp_path: Path) -> None:
    """Wherever the process ends: nothing has to be tidied up before the next one."""
    code = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX); print(); time.sleep(60)"
    )
    lock = tmp_path / "new" / LOCK
    lock.parent.mkdir()
    lock.write_text("process 7 on elsewhere\n")
    other = subprocess.Popen([sys.executable, "-S", "-uc", code, lock], stdout=subprocess.PIPE)
    assert other.stdout is not None
    other.stdout.readline()
    said = r"new is in use by another run \(process 7 on elsewhere\): .* another folder$"
    with pytest.raises(UserError, match=said), only_one_in(lock.parent):
        pass
    other.kill()
    other.communicate()
    with only_one_in(lock.parent):
        assert lock.read_text().startswith(f"process {os.getpid()} on ")
    assert not lock.exists()


def test_a_lock_is_given_back_where_its_holder_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyError), only_one(tmp_path / "made" / "x.lock", "x", "output"):
        raise KeyError
    assert not list((tmp_path / "made").iterdir())
