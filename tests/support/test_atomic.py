"""Outputs are there whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from d2v_lightning.support.atomic import atomic_write
from d2v_lightning.support.errors import NotFoundError


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


def test_what_safetensors_says_of_the_system_is_its_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised, atomic_write(tmp_path / "out") as unfinished:  # noqa: PT012
        unfinished.mkdir()
        save_file({"x": torch.ones(2)}, unfinished / "missing" / "x.safetensors")
    assert (raised.value.errno, raised.value.filename) == (errno.ENOENT, str(tmp_path / "out"))


@pytest.mark.parametrize("error", [KeyError("os error"), NotFoundError("no such tokenizer"), OSError("not on the hub")])
def test_other_errors_stay_as_they_are(error: Exception, tmp_path: Path) -> None:
    """Also those that libraries raise as errors of the system, with nothing but a message."""
    said = str(error)
    with pytest.raises(type(error)) as raised, atomic_write(tmp_path / "out"):
        raise error
    assert str(raised.value) == said
    assert not list(tmp_path.iterdir())


def test_files_of_a_folder_are_on_the_disk_before_its_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr("os.fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    with atomic_write(tmp_path / "out") as unfinished:
        (unfinished / "inner").mkdir(parents=True)
        (unfinished / "a").write_text("a")
        (unfinished / "inner" / "b").write_text("b")
    assert sorted(synced) == [str(tmp_path / ".out.unfinished" / name) for name in ("a", "inner/b")]
