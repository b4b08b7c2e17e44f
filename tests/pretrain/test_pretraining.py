"""Pretraining: what a step, a validation and a prediction do with what an objective says."""

from __future__ import annotations

import pytest
import torch
from tiny import image_batches, ready_loader, tiny_image_model, trained, trainer

from d2v_lightning.pretrain.pretraining import Pretraining
from d2v_lightning.support.errors import UserError


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


@pytest.mark.filterwarnings("ignore")
def test_a_validation_is_the_mean_over_hidden_tokens_whatever_the_batches() -> None:
    model, rows = tiny_image_model(), image_batches([3, 12, 9])
    losses = torch.cat([model.evaluate(row)[0] for row in rows])
    (figures,) = trainer([], 1).validate(model, ready_loader(rows), verbose=False)
    assert figures == {"val/loss": pytest.approx(float(losses.mean()), rel=1e-6)}
    (figures,) = trainer([], 1).test(model, ready_loader(rows), verbose=False)
    assert figures == {"test/loss": pytest.approx(float(losses.mean()), rel=1e-6)}


@pytest.mark.filterwarnings("ignore")
def test_a_prediction_is_the_mean_over_the_tokens_of_the_last_block() -> None:
    model, rows = tiny_image_model(), image_batches([9, 9])
    found = trainer([], 1).predict(model, ready_loader(rows))
    assert found is not None
    for made, row in zip(found, rows, strict=True):
        expected = model.backbone.features(row["inputs"], layers=[-1]).layers[0].mean(dim=1)
        torch.testing.assert_close(made, expected)


def test_a_step_counts_its_hidden_tokens() -> None:
    model = tiny_image_model()
    units = []
    for row in image_batches([3, 12]):
        model.training_step(row, 0)
        units.append(model.units)
    assert units[1] == 4 * units[0] == 24 / 4096


def test_parameters_that_objectives_share_are_averaged_once() -> None:
    one, other = tiny_image_model(), tiny_image_model()
    other.backbone.transformer, other.teacher.transformer = one.backbone.transformer, one.teacher.transformer
    one.objectives = lambda: [one, other]  # type: ignore[method-assign]
    own, theirs = one.ema_pairs()
    expected = {id(parameter) for model in (one, other) for parameter in model.teacher.parameters()}
    assert len(own) == len(theirs) == len(expected)
    assert {id(parameter) for parameter in own} == expected


def test_what_a_subclass_must_say_is_asked_for() -> None:
    with pytest.raises(TypeError, match=r"abstract class Pretraining .*objective.*objectives"):
        Pretraining()  # type: ignore[abstract]
    with pytest.raises(UserError, match="on_nonfinite is 'go on': choose 'stop' or 'skip'"):
        tiny_image_model(on_nonfinite="go on")  # type: ignore[arg-type]
