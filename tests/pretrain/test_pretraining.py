"""Pretraining: what a step, a validation and a prediction do with what an objective says."""

from __future__ import annotations

import pytest
import torch
from tiny import image_batches, ready_loader, tiny_image_model, trained, trainer


def test_a_skipped_batch_leaves_no_trace_in_the_student_and_is_named() -> None:
    rows = image_batches([9, 9])
    rows[1]["inputs"][1, 0, 0, 0] = float("nan")
    rows[1]["index"] = torch.tensor([70, 71])
    model = tiny_image_model(on_nonfinite="skip")
    with pytest.warns(
        UserWarning, match=r"loss is nan at optimiser step 1; .* samples 71: this micro-batch is left out"
    ):
        trainer([], 2).fit(model, ready_loader(rows))
    expected = trained(rows[:1], 1, steps=1, clip=None)
    for ours, theirs in zip(model.student.parameters(), expected.student.parameters(), strict=True):
        assert torch.equal(ours, theirs)
