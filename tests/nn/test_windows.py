"""Windows: recordings are put together from the frames that are kept, and padding leaks nothing for a while."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from d2v_lightning import AudioEncoder, TextEncoder
from d2v_lightning.nn.windows import Joined, exact_padding


def windows(*rows: tuple[int, tuple[int, int], bool]) -> dict[str, Any]:
    """A batch of windows: index, frames that are kept, whether it is the last."""
    index, keep, last = zip(*rows, strict=True)
    return {"index": torch.tensor(index), "keep": torch.tensor(keep), "last": torch.tensor(last)}


def said(number: int) -> torch.Tensor:
    """What a network says about a window of four frames."""
    return torch.arange(4.0)[:, None] + 10 * number


def test_a_recording_comes_with_its_last_window_and_holds_the_frames_that_are_kept() -> None:
    joined = Joined()
    first = windows((7, (0, 3), False), (2, (1, 4), True), (5, (0, 4), False))
    found = dict(joined.add(first, [said(0), said(1), said(2)]))
    assert {index: torch.cat(pieces).flatten().tolist() for index, pieces in found.items()} == {2: [11, 12, 13]}
    second = windows((5, (2, 2), True), (7, (1, 2), True))
    found = dict(joined.add(second, [said(3), said(4)]))
    assert {index: torch.cat(pieces).flatten().tolist() for index, pieces in found.items()} == {
        5: [20, 21, 22, 23],
        7: [0, 1, 2, 41],
    }
    ((_, pieces),) = joined.add(windows((7, (0, 1), True)), [said(5)])
    assert torch.cat(pieces).flatten().tolist() == [50], "the next time it begins anew"


def test_what_a_stopped_run_left_is_forgotten() -> None:
    joined = Joined()
    assert not list(joined.add(windows((3, (0, 4), False)), [said(0)]))
    joined.clear()
    ((_, pieces),) = joined.add(windows((3, (0, 1), True)), [said(1)])
    assert [piece.tolist() for piece in pieces] == [[[10.0]]]


def test_padding_is_exact_for_a_while_and_then_as_it_was() -> None:
    parts: list[tuple[Any, Any]] = [
        (AudioEncoder(16, [(8, 10, 5)], position_groups=4, padding="released_1"), "released_1"),
        (TextEncoder(16, 40, 20, mask_id=39, padding="released_2"), "released_2"),
        (TextEncoder(16, 40, 20, mask_id=39), "exact"),
    ]
    both = torch.nn.ModuleList(part for part, _ in parts)
    with pytest.raises(KeyError), exact_padding(both):  # noqa: PT012
        assert [(part.padding, part.position.padding) for part, _ in parts] == [("exact", "exact")] * 3
        raise KeyError
    assert [(part.padding, part.position.padding) for part, _ in parts] == [(was, was) for _, was in parts]
