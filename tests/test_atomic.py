"""Outputs are there whole or not at all."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from d2v_lightning.atomic import atomic_write


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "x"), Exception("No space left on device (os error 28)")])
def test_a_full_disk_is_named_with_the_output_and_leaves_the_old_one(error: Exception, tmp_path: Path) -> None:
    """However the library that writes says so."""
    target = tmp_path / "out"
    target.write_text("old")
    with pytest.raises(OSError) as raised, atomic_write(target) as unfinished:  # noqa: PT011, PT012
        unfinished.write_text("half")
        raise error
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(target))
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_other_errors_stay_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(KeyError), atomic_write(tmp_path / "out"):
        raise KeyError("os error")
    assert not list(tmp_path.iterdir())
