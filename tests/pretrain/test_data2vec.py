"""Data2Vec: an objective that trains itself, and starts from the weights of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from tiny import image_batch, tiny_image_model

from d2v_lightning import Data2Vec
from d2v_lightning.configurable import build
from d2v_lightning.support.errors import UserError


@pytest.fixture
def written(tmp_path: Path) -> tuple[str, Data2Vec]:
    """A checkpoint whose teacher differs from its student."""
    model = tiny_image_model()
    for parameter in model.student.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.backbone.licence = "CC-BY-NC-4.0"
    content: dict[str, Any] = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(content)
    torch.save(content, tmp_path / "before.ckpt")
    return str(tmp_path / "before.ckpt"), model


def started(path: str, part: str, **changes: Any) -> Data2Vec:
    tree = tiny_image_model(**changes).config
    return build({**tree, "init_args": {**tree["init_args"], "checkpoint": path, "teacher_from": part}})


@pytest.mark.parametrize("part", ["teacher", "student"])
def test_a_warm_start_takes_the_student_and_the_teacher_that_is_asked_for(
    part: Literal["teacher", "student"], written: tuple[str, Data2Vec]
) -> None:
    path, before = written
    model = started(path, part)
    for name, tensor in before.student.state_dict().items():
        assert torch.equal(model.student.state_dict()[name], tensor), name
    source = before.teacher if part == "teacher" else before.backbone
    for name, tensor in model.teacher.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name]), name
    assert not torch.equal(
        before.teacher.transformer.blocks[0].mlp.fc1.weight, before.backbone.transformer.blocks[0].mlp.fc1.weight
    )
    assert model.config["init_args"]["checkpoint"] is None, "its own checkpoints hold the weights"
    assert not any(parameter.requires_grad for parameter in model.teacher.parameters())
    assert model.backbone.licence == "CC-BY-NC-4.0", "weights that were trained on keep their licence"


def test_a_warm_start_from_another_network_or_part_is_refused(written: tuple[str, Data2Vec]) -> None:
    with pytest.raises(UserError, match=r"before\.ckpt"):
        started(written[0], "teacher", depth=2)
    with pytest.raises(UserError, match="teacher_from is 'techer': choose 'teacher' or 'student'"):
        started(written[0], "techer")


def test_it_is_its_own_objective_for_any_batch() -> None:
    model, batch = tiny_image_model(), image_batch(2, 9)
    assert model.objective(batch) is model
    assert list(model.objectives()) == [model]
    assert model.label(batch) == ""
    assert torch.equal(model.training_step(batch, 0), model.regress(batch)[0])
