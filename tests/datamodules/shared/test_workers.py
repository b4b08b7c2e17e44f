"""Loading processes: what is refused in one arrives as it was raised, and a lost batch ends the run."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

from d2v_lightning.commands.running import run_command
from d2v_lightning.support.errors import NotFoundError, UserError
from datamodules.shared import workers
from datamodules.shared.workers import SafeLoader


class CannotTravelError(OSError):
    def __init__(self, *, response: str) -> None:
        super().__init__(f"{response} of a server")


ERRORS = {
    "refusal": NotFoundError("no picture at x: give another"),
    "system": OSError(errno.EACCES, os.strerror(errno.EACCES), "x.png"),
    "odd": CannotTravelError(response="503"),
}


def sample(key: int, error: Exception | None) -> dict[str, Any]:
    if key == 3 and error is not None:
        raise error
    return {"index": key, "inputs": torch.full((2,), float(key))}


class Keyed(Dataset[Any]):
    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def __len__(self) -> int:
        return 8

    def __getitem__(self, key: int) -> Any:
        return sample(key, self.error)


class Streamed(IterableDataset[Any]):
    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def __iter__(self) -> Iterator[Any]:
        return (sample(key, self.error) for key in range(8))


@pytest.mark.parametrize("kind", [Keyed, Streamed])
@pytest.mark.parametrize("batch_size", [2, None])
def test_batches_are_those_of_a_plain_loader(kind: type, batch_size: int | None) -> None:
    plain = torch.utils.data.DataLoader(kind(), batch_size=batch_size)
    loader = SafeLoader(kind(), batch_size=batch_size, num_workers=1)
    for ours, theirs in zip(loader, plain, strict=True):
        assert ours.keys() == theirs.keys()
        assert torch.equal(torch.as_tensor(ours["index"]), torch.as_tensor(theirs["index"]))
        assert torch.equal(ours["inputs"], theirs["inputs"])


@pytest.mark.parametrize("name", list(ERRORS))
@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("kind", [Keyed, Streamed])
def test_an_error_for_people_arrives_as_it_was_raised(kind: type, num_workers: int, name: str) -> None:
    error = ERRORS[name]
    batches = iter(SafeLoader(kind(error), batch_size=2, num_workers=num_workers))
    assert next(batches)["index"].tolist() == [0, 1]
    with pytest.raises((UserError, OSError)) as raised:
        next(batches)
    assert str(raised.value) == str(error)
    if name != "odd":
        assert type(raised.value) is type(error)
        assert getattr(raised.value, "filename", None) == getattr(error, "filename", None)
    if num_workers:
        assert "in sample\n" in str(raised.value.__cause__), "the worker's traceback is kept"


def test_a_fault_in_a_loading_process_stays_one() -> None:
    with pytest.raises(KeyError, match="Traceback"):
        list(SafeLoader(Keyed(KeyError("a fault")), batch_size=2, num_workers=1))


class Unsendable(Keyed):
    """Stands for a batch that finds no room in the shared memory: it fails where it is handed over."""

    def __getitem__(self, key: int) -> Any:
        return {"index": key, "lost": lambda: None} if key == 3 else super().__getitem__(key)


def test_a_batch_that_cannot_be_handed_over_is_one_line_and_no_hang(capsys: pytest.CaptureFixture[str]) -> None:
    loader = SafeLoader(Unsendable(), batch_size=1, num_workers=1, collate_fn=lambda samples: samples[0], timeout=60)
    assert run_command(lambda: list(loader)) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: a loading process ended unexpectedly")
    assert "--shm-size" in printed
    assert len(printed.splitlines()) == 1


def test_little_shared_memory_is_said_at_the_first_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Room:
        f_bavail, f_blocks, f_frsize = 2**12, 1, 16

    monkeypatch.setattr(workers, "SHARED", str(tmp_path))
    monkeypatch.setattr(os, "statvfs", lambda path: Room)
    with pytest.warns(UserWarning, match=r"1 loading processes may share .*Docker: --shm-size=8g"):
        next(iter(SafeLoader(Keyed(), batch_size=4, num_workers=1)))
    Room.f_bavail -= 1
    with pytest.raises(UserError, match=r"has 64 kB free: raise its limit .*num_workers to 0"):
        next(iter(SafeLoader(Keyed(), batch_size=4, num_workers=1)))
    assert next(iter(SafeLoader(Keyed(), batch_size=4)))["index"].tolist() == [0, 1, 2, 3]


def test_a_loading_process_whose_parent_has_gone_before_it_began_ends() -> None:
    loader = SafeLoader(Keyed(), num_workers=1, batch_size=2)
    begin = loader.worker_init_fn
    assert begin is not None
    for parent, code in ((os.getpid(), 7), (-1, 0)):
        begin.parent = parent  # type: ignore[attr-defined]
        if (child := os.fork()) == 0:
            begin(0)
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code
