"""Recordings that come in windows: what a network says about each window, put together, and padding that changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class Joined:
    """Puts together what a network says about windows of recordings, see `datamodules.speech.windows`."""

    def __init__(self) -> None:
        self._pieces: dict[int, list[Tensor]] = {}

    def clear(self) -> None:
        """Forget recordings whose last window has not come, because a run was stopped."""
        self._pieces.clear()

    def add(self, batch: Any, rows: Sequence[Tensor]) -> Iterator[tuple[int, list[Tensor]]]:
        """Take the rows (W, N, ...) of a batch of windows.

        Args:
            batch: with "index" (W,), "keep" (W, 2) and "last" (W,).
            rows: what was said about each window, a vector for each frame.

        Yields:
            Recordings whose last window this was: the index, and of each window those frames that are kept (n, ...).
        """
        places = zip(rows, batch["index"].tolist(), batch["keep"].tolist(), batch["last"].tolist(), strict=True)
        for row, index, (first, end), last in places:
            self._pieces.setdefault(index, []).append(row[first:end])
            if last:
                yield index, self._pieces.pop(index)


@contextmanager
def exact_padding(module: nn.Module) -> Iterator[None]:
    """For a while a sample padded in a batch is what it is alone, in released networks too, whose padding leaks."""
    leaking = [(part, part.padding) for part in module.modules() if str(getattr(part, "padding", "")).startswith("rel")]
    for part, _ in leaking:
        part.padding = "exact"  # type: ignore[assignment]  # of an encoder or its positions
    try:
        yield
    finally:
        for part, padding in leaking:
            part.padding = padding
