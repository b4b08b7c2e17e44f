"""A stream gives the same batches again, also from the middle of an epoch, and shares them out without overlap."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from streams import ROWS, rows_of, stream

from d2v_lightning.support.errors import UserError

pytestmark = pytest.mark.usefixtures("no_waiting")


@pytest.mark.filterwarnings("ignore:.*unreadable")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume_within_an_epoch_of_a_stream_is_exact(picture_rows: Path, num_workers: int) -> None:
    whole = stream(picture_rows, num_workers=num_workers).train_dataloader()
    whole.sampler.set_epoch(1)
    expected = list(whole)
    assert len(expected) == 8

    resumed = stream(picture_rows, num_workers=num_workers).train_dataloader()
    resumed.load_state_dict({**whole.state_dict(), "epoch": 1, "consumed": 5})
    resumed.sampler.set_epoch(1)
    rest = list(resumed)
    assert len(rest) == 3
    for ours, theirs in zip(rest, expected[5:], strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ("inputs", "mask", "index", "labels"))


@pytest.mark.filterwarnings("ignore:.*unreadable")
def test_an_epoch_of_a_stream_is_a_shuffled_pass(picture_rows: Path) -> None:
    loader = stream(picture_rows).train_dataloader()
    orders = []
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        batches = list(loader)
        orders.append([row for batch in batches for row in rows_of(batch)])
        assert set(orders[-1]) == set(range(ROWS)) - {5}
        assert all(
            label == row % 3
            for batch in batches
            for label, row in zip(batch["labels"].tolist(), rows_of(batch), strict=True)
        )
    assert orders[0] != orders[1]
    assert orders[0] != sorted(orders[0])


@pytest.mark.filterwarnings("ignore:.*unreadable")
def test_workers_and_ranks_share_a_stream(picture_rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datamodules.shared import samplers, streaming

    seen: list[int] = []
    for rank in (0, 1):
        monkeypatch.setattr(samplers, "world", lambda rank=rank: (rank, 2))
        monkeypatch.setattr(streaming, "world", lambda rank=rank: (rank, 2))
        loader = stream(picture_rows, num_workers=2).train_dataloader()
        batches = list(loader)
        assert len(batches) == 4
        seen += [row for batch in batches for row in rows_of(batch)]
    assert len(seen) == ROWS
    # One broken row is replaced by its neighbour, so one row comes twice.
    assert len(set(seen)) == ROWS - 1


@pytest.mark.filterwarnings("ignore:.*unreadable")
def test_every_readable_row_counts_once_in_evaluation_on_any_number_of_ranks(
    picture_rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datamodules.shared import samplers, streaming

    seen: dict[int, dict[int, tuple[int, bytes]]] = {}
    for world_size in (1, 2, 3, 6, 7):
        seen[world_size], lengths = {}, []
        for rank in range(world_size):
            monkeypatch.setattr(samplers, "world", lambda rank=rank, size=world_size: (rank, size))
            monkeypatch.setattr(streaming, "world", lambda rank=rank, size=world_size: (rank, size))
            batches = list(stream(picture_rows).val_dataloader())  # type: ignore[arg-type]
            lengths.append(len(batches))
            for batch in batches:
                counts = ~batch.get("repeated", torch.zeros(len(batch["inputs"]), dtype=torch.bool))
                for row, index, mask, own in zip(
                    rows_of(batch), batch["index"].tolist(), batch["mask"], counts.tolist(), strict=True
                ):
                    if own:
                        assert row not in seen[world_size]
                        seen[world_size][row] = index, mask.numpy().tobytes()
        assert lengths == [math.ceil(math.ceil(ROWS / world_size) / 3)] * world_size, "as many on every rank"
        assert seen[world_size].keys() == set(range(ROWS)) - {5}
        assert seen[world_size] == seen[1], "the same masks too"


def test_a_stream_without_rows_is_refused_and_not_waited_for(
    picture_rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datamodules.shared import streaming

    empty = SimpleNamespace(shuffle=lambda **_: [])
    with pytest.raises(UserError, match="the stream has no rows for device 0 of 1"):
        next(iter(streaming.Stream(empty, "image", batch_size=2, seed=0, shuffle=True, buffer=4)))
    monkeypatch.setattr(streaming, "world", lambda: (0, 30))
    with pytest.raises(UserError, match="24 rows cannot be shared out to 30 devices"):
        stream(picture_rows).val_dataloader()
