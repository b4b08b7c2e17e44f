"""What Lightning says in every run, and nobody needs to read."""

from __future__ import annotations

import logging
import re
import warnings

# The teacher is in eval mode on purpose; data without a held-out part have an empty list of loaders for it; callbacks of
# a fit are not missing in a test, and a module brings its own again; the rest is about Lightning's own code and its maker's
# services.
_NOT_FOR_PEOPLE = (
    r"Found \d+ module\(s\) in eval mode",
    r"Total length of `list` across ranks is zero",
    r"Be aware that when using `ckpt_path`, callbacks",
    r"The following callbacks returned in `LightningModule.configure_callbacks` will override",
    r".*isinstance\(treespec, LeafSpec\)",
    r".*(litlogger|litmodels)",
    r"Couldn't infer the batch indices",
    r"Checkpoint directory .* exists and is not empty",
    r"Restor(ing|ed all) states from",
)


def leave_out_noise() -> None:
    """Leave it out of warnings and logs."""
    for message in _NOT_FOR_PEOPLE:
        warnings.filterwarnings("ignore", message)
    # Both: where both are imported, both speak as the one that was imported last.
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(f"{name}.utilities.rank_zero").addFilter(_is_no_noise)  # once, however often


def _is_no_noise(record: logging.LogRecord) -> bool:
    return not any(re.match(pattern, record.getMessage()) for pattern in _NOT_FOR_PEOPLE)
