"""What is true of any correct data2vec: who sees the mask, where the loss is taken, how gradients and teacher move."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny import image_batch, image_batches, ready_loader, tiny_backbone, tiny_image_model, trainer
from torch import Tensor

from d2v_lightning import EMATeacher, ImageClassifier, Optimization
from d2v_lightning.flavour import pl
from d2v_lightning.method.positions import hidden_positions
from d2v_lightning.method.teacher import Teacher


def test_the_teacher_never_sees_the_mask() -> None:
    model, batch = tiny_image_model(), image_batch(3, 9)
    other = {**batch, "mask": ~batch["mask"]}
    assert torch.equal(model.targets(batch), model.targets(other))
    assert not torch.equal(model.training_step(batch, 0), model.training_step(other, 0))


def test_the_student_never_sees_hidden_patches() -> None:
    model, batch = tiny_image_model(), image_batch(3, 9)
    changed = batch["inputs"].clone()
    patches = changed.unfold(2, 4, 4).unfold(3, 4, 4)  # a view: (B, C, 4, 4, 4, 4)
    hidden = batch["mask"][:, 0].reshape(3, 1, 4, 4, 1, 1)
    patches.copy_(torch.where(hidden, torch.randn_like(patches), patches))
    predictions, _ = model.predictions(batch)
    other, _ = model.predictions({**batch, "inputs": changed})
    assert torch.equal(predictions, other)


def test_only_hidden_positions_enter_the_loss() -> None:
    model, batch = tiny_image_model(), image_batch(3, 9)
    hidden = hidden_positions(batch["mask"])
    targets = model.targets(batch)
    predictions, positions = model.predictions(batch)
    assert torch.equal(positions, hidden)
    expected = torch.nn.functional.smooth_l1_loss(predictions, targets.reshape(-1, 48)[hidden], beta=2.0)
    torch.testing.assert_close(model.training_step(batch, 0), expected)


class Witness(pl.Callback):
    """Keeps weights and modes at the moments that matter."""

    def __init__(self) -> None:
        self.teacher_modes: list[bool] = []
        self.steps: list[tuple[list[Tensor], list[Tensor]]] = []

    def on_before_backward(self, trainer: pl.Trainer, pl_module: Any, loss: Tensor) -> None:
        self.teacher_modes += [part.training for part in pl_module.teacher.modules()]

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx > 0:
            self.keep(pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.keep(pl_module)

    def keep(self, pl_module: Any) -> None:
        pairs = pl_module.teacher.pairs(pl_module.backbone)
        self.steps.append(copy.deepcopy([[t.detach() for t in side] for side in pairs]))  # type: ignore[arg-type]


def test_the_teacher_is_in_eval_mode_and_moves_once_per_optimiser_step_by_the_formula() -> None:
    model = tiny_image_model(ema_teacher=EMATeacher(decay_start=0.5, decay_end=0.9, anneal_steps=4, first_update=1))
    witness = Witness()
    start = copy.deepcopy([t.detach() for t in model.teacher.pairs(model.backbone)[0]])
    trainer([witness], 3, accumulate_grad_batches=2).fit(model, ready_loader(image_batches([9] * 6)))
    assert witness.teacher_modes
    assert not any(witness.teacher_modes)
    teacher = start
    for micro_batch, (moved, student) in enumerate(witness.steps):
        if micro_batch % 2:
            decay = {1: 0.6, 3: 0.7, 5: 0.8}[micro_batch]
            teacher = [decay * t + (1 - decay) * s for t, s in zip(teacher, student, strict=True)]
        for ours, expected in zip(moved, teacher, strict=True):
            torch.testing.assert_close(ours, expected)


def test_an_image_or_mask_of_another_size_is_refused_by_name() -> None:
    model, batch = tiny_image_model(), image_batch(2, 9)
    with pytest.raises(ValueError, match=r"images are \(3, 20, 20\)"):
        model.training_step({**batch, "inputs": torch.zeros(2, 3, 20, 20)}, 0)
    with pytest.raises(ValueError, match=r"mask is \(2, 1, 25\)"):
        model.training_step({**batch, "mask": torch.zeros(2, 1, 25, dtype=torch.bool)}, 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tiny_backbone(norm="Post"), "norm is 'Post': choose from pre, post"),
        (lambda: tiny_backbone(qkv_bias="kv"), "qkv_bias is 'kv'"),
        (lambda: tiny_backbone(init="xavier"), "init is 'xavier'"),
        (lambda: tiny_backbone(depth=0), "depth is 0"),
        (lambda: tiny_backbone(drop_path=1.0), "drop_path is 1.0"),
        (lambda: Teacher(tiny_backbone(), "everything"), "teacher_scope is 'everything'"),  # type: ignore[arg-type]
        (lambda: Optimization(betas=(0.9, 2.0)), "betas is"),
        (lambda: ImageClassifier(backbone=tiny_backbone(), label_smoothing=2.0), "label_smoothing is 2.0"),
        (lambda: ImageClassifier(backbone=tiny_backbone(), mixup=-1.0), "mixup is -1.0"),
    ],
)
def test_a_misspelt_or_impossible_argument_is_refused_in_python_too(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_batch_without_masks_or_labels_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="has no 'mask': pre-training needs"):
        tiny_image_model().training_step({"inputs": torch.randn(2, 3, 16, 16)}, 0)
    with pytest.raises(ValueError, match="has no 'inputs' and no 'labels': classification needs"):
        ImageClassifier(backbone=tiny_backbone()).training_step([torch.randn(2, 3, 16, 16)], 0)  # type: ignore[arg-type]
