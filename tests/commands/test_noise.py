"""What nobody needs to read is left out of warnings and logs, once, and nothing else is."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator

import pytest

from d2v_lightning.commands.noise import _is_no_noise, leave_out_noise

NOISE = "Found 7 module(s) in eval mode at the start of training."
EMPTY = "Total length of `list` across ranks is zero. Please make sure this was your intention."
NEWS = "The dataloader has no workers."


@pytest.fixture(params=["pytorch_lightning", "lightning.pytorch"])
def logger(request: pytest.FixtureRequest) -> Iterator[logging.Logger]:
    """One of those that Lightning writes to, which is left as it was."""
    logger = logging.getLogger(f"{request.param}.utilities.rank_zero")
    before = list(logger.filters)
    yield logger
    logger.filters[:] = before


def test_noise_is_left_out_and_news_are_not(logger: logging.Logger) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        leave_out_noise()
        leave_out_noise()
        for message in (NOISE, EMPTY, NEWS):
            warnings.warn(message, stacklevel=1)
    assert [str(warning.message) for warning in caught] == [NEWS]
    assert logger.filters.count(_is_no_noise) == 1
    records = [logging.LogRecord("a", logging.INFO, "a", 1, text, None, None) for text in (NOISE, NEWS)]
    assert [bool(logger.filter(record)) for record in records] == [False, True]
