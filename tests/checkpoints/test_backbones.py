"""The backbone in a file for another task: its part, its size, its regularisation; whatever else it was trained with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import tiny_image_model

from d2v_lightning import Data2Vec
from d2v_lightning.checkpoints.backbones import load_backbone
from d2v_lightning.support.errors import UserError


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Data2Vec, Path]:
    """A model whose teacher has moved away from its student, and the directory that it is in."""
    model = tiny_image_model(dropout=0.3)
    with torch.no_grad():
        for parameter in model.teacher.parameters():
            parameter.add_(1.0)
    folder = tmp_path_factory.mktemp("saved") / "model"
    model.save_pretrained(folder)
    return model, folder


def test_each_part_is_itself(saved: tuple[Data2Vec, Path]) -> None:
    model, folder = saved
    student, teacher = load_backbone(folder), load_backbone(folder, part="teacher")
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(student.state_dict()[name], tensor), name
    for name, tensor in model.teacher.state_dict().items():
        assert torch.equal(teacher.state_dict()[name], tensor), name
    assert student.encoder.config == teacher.encoder.config == model.encoder.config


def test_the_new_task_says_how_it_is_regularised_and_nothing_else_changes(saved: tuple[Data2Vec, Path]) -> None:
    model, folder = saved
    kept = load_backbone(folder).transformer.config["init_args"]
    assert kept == model.backbone.transformer.config["init_args"]
    changed = load_backbone(folder, drop_path=0.25, trunk={"dropout": 0.0}).transformer.config["init_args"]
    assert {name: value for name, value in changed.items() if value != kept[name]} == {
        "drop_path": 0.25,
        "dropout": 0.0,
    }


def test_another_size_of_image_resizes_the_positions_and_keeps_the_rest(saved: tuple[Data2Vec, Path]) -> None:
    model, folder = saved
    larger = load_backbone(folder, image_size=(16, 32))
    assert larger.encoder.grid == (4, 8)
    assert larger(torch.zeros(1, 3, 16, 32)).shape[1] == 1 + 32
    same, table = load_backbone(folder, image_size=16), "transformer.position_bias.shared_table"
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(same.state_dict()[name], tensor), name
        if not name.startswith("transformer.position_bias."):
            assert torch.equal(larger.state_dict()[name], tensor), name
    before, after = model.backbone.state_dict()[table], larger.state_dict()[table]
    assert (len(before), len(after)) == (7 * 7 + 3, 7 * 15 + 3)
    assert torch.equal(after[-3:], before[-3:]), "those of the class token"


def test_what_is_not_there_is_refused(saved: tuple[Data2Vec, Path]) -> None:
    _, folder = saved
    with pytest.raises(UserError, match="part is 'head': choose 'student' or 'teacher'"):
        load_backbone(folder, part="head")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="leave modality out"):
        load_backbone(folder, modality="image")
    with pytest.raises(UserError, match=r"image_size is \(2, 2\), which holds no patch of 4x4 pixels"):
        load_backbone(folder, image_size=2)
    with pytest.raises(UserError, match="image_size 18x18 is not a whole number of patches of 4x4"):
        load_backbone(folder, image_size=18)
