"""EMATeacher: the decays of the official code, and weights that the teacher could not follow are refused."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from golden_case import GOLDEN
from tiny import image_batches, ready_loader, tiny_image_model, trainer

from d2v_lightning import EMATeacher
from d2v_lightning.support.errors import UserError

TABLES = json.loads((GOLDEN / "schedules.json").read_text())


EMA_ROWS = {
    "d2v1_audio_base (0.999 -> 0.9999 over 30000)": (0.999, 0.9999, 30_000, 1),
    "d2v1_text_base (0.999 -> 0.9999 over 300000)": (0.999, 0.9999, 300_000, 1),
    "d2v1_text_alt (0.999 -> 0.9999 over 100000)": (0.999, 0.9999, 100_000, 1),
    "d2v2_audio_base (0.999 -> 0.99999 over 75000)": (0.999, 0.99999, 75_000, 1),
    "d2v2_image_base (0.9998 -> 0.99999 over 100000)": (0.9998, 0.99999, 100_000, 1),
    "d2v2_text_base (0.9999 -> 0.99999 over 100000)": (0.9999, 0.99999, 100_000, 1),
    "d2v1_vision_readme ViT-B (ema_start_at 0 -> constant 0.9998), index = 0-based iteration": (0.999, 0.9998, 0, 0),
    "d2v1_vision_argparse_defaults (0.999 -> 0.9998 over 25000), index = 0-based iteration": (0.999, 0.9998, 25_000, 0),
    "d2v1_vision_readme ViT-L second phase (constant 0.9999)": (0.999, 0.9999, 0, 0),
}


@pytest.mark.parametrize("name", list(TABLES["ema_decay"]))
def test_ema_decays(name: str) -> None:
    ema = EMATeacher(*EMA_ROWS[name])
    for update, value in TABLES["ema_decay"][name]:
        step = update + 1 if ema.first_update == 0 else update  # image rows count iterations from 0
        assert ema.decay(step) == pytest.approx(value, abs=1e-12), update


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_half_stored_weights_are_refused(precision: Any) -> None:
    with pytest.raises(ValueError, match="bf16-mixed"):
        trainer([], 1, precision=precision).fit(tiny_image_model(), ready_loader(image_batches([9])))


def test_half_stored_weights_are_refused_where_the_device_calls_them_float32() -> None:
    """As XLA does under `bf16-true`."""
    model = tiny_image_model()
    for precision in ("bf16-true", "16-true"):
        with pytest.raises(UserError, match=rf"trainer.precision '{precision}': at a decay of") as error:
            model.ema_teacher.on_fit_start(SimpleNamespace(precision=precision), model)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)
    model.ema_teacher.on_fit_start(SimpleNamespace(precision="32-true"), model)  # type: ignore[arg-type]


def test_bf16_mixed_moves_the_teacher() -> None:
    model = tiny_image_model(ema_teacher=EMATeacher(decay_start=0.9999, decay_end=0.9999))
    before = copy.deepcopy(model.teacher.state_dict())
    trainer([], 4, precision="bf16-mixed").fit(model, ready_loader(image_batches([9] * 4)))
    moved = {name for name, tensor in model.teacher.state_dict().items() if not torch.equal(tensor, before[name])}
    assert "transformer.blocks.0.attn.qkv.weight" in moved


def test_an_update_is_the_weighted_mean_of_teacher_and_student() -> None:
    model = tiny_image_model(ema_teacher=EMATeacher(decay_start=0.5, decay_end=0.9, anneal_steps=4))
    own, theirs = model.ema_pairs()
    for parameter in theirs:
        parameter.data.add_(1.0)
    before = [parameter.clone() for parameter in own]
    model.ema_teacher.update(model, step=3)  # two updates were made: .5 + .4 * 2 / 4
    for teacher, was, student in zip(own, before, theirs, strict=True):
        torch.testing.assert_close(teacher, 0.7 * was + 0.3 * student.detach())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"decay_start": 1.5}, "decay_start is 1.5: a decay lies between 0"),
        ({"decay_end": -0.1}, "decay_end is -0.1"),
        ({"first_update": 2}, "first_update is 2: choose 0"),
    ],
)
def test_a_decay_that_is_none_is_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        EMATeacher(**arguments)
