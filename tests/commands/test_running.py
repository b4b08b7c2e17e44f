"""How commands end: one line for what a person can mend, the traceback for a fault of ours."""

from __future__ import annotations

import errno
import os
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from d2v_lightning.checkpoints.atomic_io import AtomicCheckpointIO
from d2v_lightning.commands.running import run_command
from d2v_lightning.flavour import fabric
from d2v_lightning.support.atomic import atomic_write
from d2v_lightning.support.errors import NotFoundError, UsageError, UserError


def raising(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


def system(number: int, path: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), *([] if path is None else [path]))


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("x is 5: choose 6"), 1, "x is 5: choose 6"),
        (UsageError("no such option"), 2, "no such option"),
        (NotFoundError("no file at y"), 1, "no file at y"),
        (system(errno.ENOSPC, "/a/b"), 1, "/a/b: No space left on device: free some space"),
        (system(errno.EACCES, "c"), 1, "c: Permission denied: change its permissions"),
        (system(errno.EMFILE), 1, "Too many open files: raise the limit on open files (ulimit -n)"),
        (OSError("first\n  second"), 1, "first second"),
        (MemoryError(), 1, "not enough memory: choose a smaller batch"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB.\nmore"), 1, "Tried 2 GiB: choose a smaller batch"),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. \nmore"),
            1,
            "a loading process ended unexpectedly (Killed)",
        ),
        (
            RuntimeError(
                "[/a/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:34729. This is typical"
            ),
            1,
            "ended or cannot be reached (Connection closed by peer [127.0.0.1]:34729): look for its own line",
        ),
        (
            torch.distributed.DistNetworkError("failed to recv, got 0 bytes\nException raised from recvBytes"),
            1,
            "ended or cannot be reached (failed to recv, got 0 bytes): look for its own line",
        ),
        (ImportError("install flashlight-text"), 1, "install flashlight-text"),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
    ],
)
def test_what_a_person_can_mend_is_one_line(
    error: BaseException, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(raising(error)) == status
    printed = capsys.readouterr().err
    assert said in printed
    assert len(printed.splitlines()) == 1


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), RuntimeError("x"), ImportError("x", name="y")])
def test_a_fault_of_ours_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        run_command(raising(error))


def test_notes_say_what_is_safe(capsys: pytest.CaptureFixture[str]) -> None:
    error = system(errno.EIO, "disk")
    error.add_note("the last whole checkpoint is last.ckpt")
    run_command(raising(error))
    assert capsys.readouterr().err.endswith("the network. the last whole checkpoint is last.ckpt\n")
    run_command(raising(fabric.utilities.exceptions.MisconfigurationException("A sentence.")))
    refused = fabric.utilities.exceptions.MisconfigurationException("A sentence.")
    refused.add_note("Saved")
    run_command(raising(refused))
    assert capsys.readouterr().err == "error: A sentence.\nerror: A sentence. Saved\n"


def test_a_reader_that_has_gone_does_not_end_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done: list[int] = []

    def command() -> None:
        for number in range(3):
            print("a line", flush=True)
            done.append(number)

    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert run_command(command) == 0
        assert sys.stdout is stream
    assert done == [0, 1, 2]


FULL = Path("/dev/full")  # every write to it fails as on a full disk


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_named_by_the_file_that_was_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out"
    target.write_text("old")

    def command() -> None:
        with atomic_write(target) as unfinished:
            unfinished.symlink_to(FULL)
            unfinished.write_text("x")

    assert run_command(command) == 1
    assert capsys.readouterr().err.startswith(f"error: {target}: No space left on device: free some space")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
def test_a_checkpoint_for_a_full_disk_is_an_error_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = open
    monkeypatch.setattr("builtins.open", lambda path, *rest, **more: real(FULL, *rest, **more))
    with pytest.raises(OSError, match="No space left") as error:
        AtomicCheckpointIO().save_checkpoint({"weights": torch.ones(300_000)}, tmp_path / "last.ckpt")
    assert error.value.filename == str(tmp_path / "last.ckpt")


ROOT = Path(__file__).parents[2]
DOCUMENTED = sorted(
    {
        name
        for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("d2v_lightning/commands/*.py"))
        for name in re.findall(r"python -m (d2v_lightning\.commands\.\w+)", path.read_text())
    }
)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_command_that_is_documented_runs(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(name, run_name="__main__")
    assert ended.value.code == 0
    assert f"python -m {name}" in capsys.readouterr().out


def test_the_documented_commands_are_known() -> None:
    assert "d2v_lightning.commands.checkpoint" in DOCUMENTED
