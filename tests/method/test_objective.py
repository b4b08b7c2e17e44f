"""Objective: where the loss is taken, what the class token adds, and settings of which the encoder is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import image_batch, tiny_backbone
from torch import Tensor

from d2v_lightning import Backbone, LinearDecoder, MaskTokenStudent, RegressionLoss, Targets, TextEncoder, Transformer
from d2v_lightning.method.objective import Objective
from d2v_lightning.support.errors import UserError

LOSS = RegressionLoss(0.0, "sum")


def objective(class_loss: float = 0.0, **targets: Any) -> Objective:
    torch.manual_seed(0)
    student = MaskTokenStudent(tiny_backbone(), LinearDecoder(48))
    return Objective(student, Targets(2, **targets), LOSS, class_loss=class_loss)


def texts(padding: Any = "exact") -> Objective:
    torch.manual_seed(0)
    encoder = TextEncoder(16, 40, 20, mask_id=39, padding=padding)
    student = MaskTokenStudent(Backbone(encoder, Transformer(16, 2, 2)), LinearDecoder(16))
    return Objective(student, Targets(1), LOSS)


def test_targets_are_the_normed_mean_of_the_top_blocks_without_the_class_token() -> None:
    model, batch = objective(), image_batch(2, 9)
    results = model.teacher_layer_results(batch)
    top = model.backbone.features(batch["inputs"], layers=[1, 2]).layers
    torch.testing.assert_close(results, top)
    mean = sum(torch.nn.functional.layer_norm(layer, (48,)) for layer in top) / 2
    expected = torch.nn.functional.layer_norm(torch.as_tensor(mean), (48,))
    torch.testing.assert_close(model.targets(batch), expected)
    assert not model.targets(batch).requires_grad


def test_losses_one_by_one_have_the_loss_as_their_mean() -> None:
    model, batch = objective(), image_batch(3, 9)
    loss, hidden = model.regress(batch)
    losses, places, of_rows = model.evaluate(batch)
    assert of_rows is None
    assert torch.equal(hidden, places)
    assert hidden.tolist() == batch["mask"].flatten().nonzero().flatten().tolist()
    torch.testing.assert_close(losses.mean(), loss)
    predictions, _ = model.predictions(batch)
    expected = (predictions - model.targets(batch).flatten(0, 1)[hidden]).square().sum(dim=1)
    torch.testing.assert_close(losses, expected)


def test_the_class_token_is_drawn_to_the_mean_of_the_targets() -> None:
    plain, batch = objective(), image_batch(3, 9)
    model = objective(class_loss=0.25)
    _, _, of_rows = model.evaluate(batch)
    assert of_rows is not None
    tokens, _ = model.encoder.features(batch["inputs"])
    class_tokens = model.student(tokens, None, batch["mask"], torch.arange(1)).extra[:, 0]
    expected = (class_tokens - model.targets(batch).mean(dim=1)).square().sum(dim=1)
    torch.testing.assert_close(of_rows, expected)
    torch.testing.assert_close(model.regress(batch)[0], plain.regress(batch)[0] + 0.25 * expected.sum())


def test_hidden_places_of_the_batch_are_taken_at_their_word() -> None:
    model, batch = objective(), image_batch(2, 9)
    hidden = batch["mask"].flatten().nonzero().flatten()[::2]
    losses, places, _ = model.evaluate({**batch, "hidden": hidden})
    assert torch.equal(places, hidden)
    torch.testing.assert_close(losses, model.evaluate(batch)[0][::2])


@pytest.mark.parametrize("padding", ["exact", "released_2"])
def test_padding_that_is_hidden_is_scored_in_released_code_alone(padding: Any) -> None:
    ids = torch.randint(3, 38, (2, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[0, 1, 0, 1, 0, 1], [1, 0, 0, 0, 1, 1]], dtype=torch.bool)[:, None]
    padding_mask = torch.arange(6) >= torch.tensor([[4], [6]])
    batch: Any = {"inputs": ids, "mask": mask, "padding_mask": padding_mask}
    _, hidden = texts(padding).regress(batch)
    assert hidden.tolist() == ([1, 3, 6, 10, 11] if padding == "exact" else [1, 3, 5, 6, 10, 11])


def test_the_teacher_gets_no_gradient_and_the_student_gets_all() -> None:
    model = objective(class_loss=0.1)
    model.regress(image_batch(2, 9))[0].backward()
    missing = [name for name, parameter in model.student.named_parameters() if parameter.grad is None]
    gradients: list[Tensor | None] = [parameter.grad for parameter in model.teacher.parameters()]
    assert not missing
    assert gradients == [None] * len(gradients)


def test_what_does_not_fit_is_refused_by_the_name_of_the_encoder() -> None:
    with pytest.raises(UserError, match="targets for ImageEncoder: average_top_k_layers is 4, but the trunk has 3"):
        Objective(MaskTokenStudent(tiny_backbone(), LinearDecoder(48)), Targets(4), LOSS)
    student = texts().student
    with pytest.raises(UserError, match=r"class_loss is 0.5, but TextEncoder makes no class token: set it to 0"):
        Objective(student, Targets(1), LOSS, class_loss=0.5)
    with pytest.raises(UserError, match=r"the batch has no 'mask': pre-training needs data.task 'pretrain'"):
        objective().regress({"inputs": torch.zeros(1, 3, 16, 16)})
