"""A checkpoint is there as a whole or not at all, and nothing in it is run when it is read."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from d2v_lightning.checkpoints.atomic_io import AtomicCheckpointIO


def _die_in_the_middle(path: str) -> None:
    def half(content: Any, file: Any) -> None:
        file.write(b"half of a new checkpoint")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    torch.save = half  # type: ignore[assignment]  # in a process of its own
    AtomicCheckpointIO().save_checkpoint({"step": 2}, path)


def test_a_kill_while_writing_leaves_the_old_checkpoint_whole(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    writer = AtomicCheckpointIO()
    writer.save_checkpoint({"step": 1}, path)
    process = multiprocessing.get_context("fork").Process(target=_die_in_the_middle, args=(str(path),))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert torch.load(path, weights_only=True) == {"step": 1}
    writer.save_checkpoint({"step": 3}, path)
    assert torch.load(path, weights_only=True) == {"step": 3}
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("first", [KeyboardInterrupt(), SystemExit(143), OSError(28, "No space left on device")])
def test_what_breaks_the_writing_off_is_said_and_not_that_the_archive_has_no_end(
    first: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken_off(content: Any, file: Any) -> None:
        try:
            file.write(b"half of a new checkpoint")
            raise first
        finally:
            raise RuntimeError("unexpected pos 2591552 vs 2591444")

    monkeypatch.setattr(torch, "save", broken_off)
    with pytest.raises(type(first)) as raised:
        AtomicCheckpointIO().save_checkpoint({"step": 2}, tmp_path / "last.ckpt")
    assert raised.value is first
    assert not list(tmp_path.iterdir())
