"""Teacher: what it owns and what it borrows by its scope, frozen, and equal to the student when it is made."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from d2v_lightning import Backbone, TextEncoder, Transformer
from d2v_lightning.method.teacher import Scope, Teacher
from d2v_lightning.nn.transformer import LayerResult

SCOPES: dict[Scope, list[str]] = {
    "transformer": ["transformer"],
    "context": ["transformer", "position"],
    "backbone": ["transformer", "encoder"],
}
IDS = torch.randint(3, 38, (2, 6), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def student() -> Backbone:
    torch.manual_seed(0)
    return Backbone(TextEncoder(16, 40, 20, mask_id=39), Transformer(16, 2, 2, layer_scale=None, dropout=0.5))


def results(teacher: Teacher, student: Backbone, padding_mask: Tensor | None = None) -> list[LayerResult]:
    tokens, _ = student.encoder.features(IDS)
    return teacher(student, IDS, tokens, padding_mask, keep=[0, 1])


def shifted(module: Any) -> None:
    for parameter in module.parameters():
        parameter.data.add_(0.5 * torch.randn_like(parameter))


def same(one: list[LayerResult], other: list[LayerResult]) -> bool:
    return all(torch.equal(a.block, b.block) and torch.equal(a.ffn, b.ffn) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("scope", SCOPES)
def test_it_starts_as_the_student_without_dropout_and_without_a_gradient(scope: Scope, student: Backbone) -> None:
    teacher = Teacher(student, scope)
    found = results(teacher, student)
    for result, expected in zip(found, student.features(IDS).layers, strict=True):
        torch.testing.assert_close(result.block, expected)
        assert not result.block.requires_grad
    assert not any(part.training for part in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize("scope", SCOPES)
def test_it_owns_what_its_scope_says_and_borrows_the_rest(scope: Scope, student: Backbone) -> None:
    teacher = Teacher(student, scope)
    assert {name.partition(".")[0] for name, _ in teacher.named_parameters()} == set(SCOPES[scope])
    before = results(teacher, student)
    shifted(student.transformer)
    assert same(results(teacher, student), before), "the trunk is always its own"
    shifted(student.encoder.position)
    assert same(results(teacher, student), before) == (scope != "transformer")
    before = results(teacher, student)
    shifted(student.encoder.get_submodule("embedding"))
    assert same(results(teacher, student), before) == (scope == "backbone")


@pytest.mark.parametrize("scope", SCOPES)
def test_pairs_are_all_that_it_owns_beside_the_same_of_the_student(scope: Scope, student: Backbone) -> None:
    teacher = Teacher(student, scope)
    own, theirs = teacher.pairs(student)
    assert {id(tensor) for tensor in own} == {id(parameter) for parameter in teacher.parameters()}
    assert {id(tensor) for tensor in theirs} <= {id(parameter) for parameter in student.parameters()}
    for mine, other in zip(own, theirs, strict=True):
        assert mine is not other
        assert torch.equal(mine, other)
    shifted(student)
    assert not any(torch.equal(mine, other) for mine, other in zip(own, theirs, strict=True))
    teacher.copy_from(student)
    assert all(torch.equal(mine, other) for mine, other in zip(own, theirs, strict=True))


def test_a_teacher_of_the_whole_backbone_reads_the_input_itself(student: Backbone) -> None:
    teacher = Teacher(student, "backbone")
    tokens, _ = student.encoder.features(IDS)
    found = teacher(student, IDS, torch.full_like(tokens, 7.0), None, keep=[1])
    assert torch.equal(found[0].block, results(teacher, student)[1].block)
