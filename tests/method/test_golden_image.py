"""data2vec 1.0 for images against numbers of Meta's own code, at the tolerances that came with them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_case import GoldenCase

from d2v_lightning import Data2Vec, load_backbone
from d2v_lightning.checkpoints import official_state_dict
from d2v_lightning.checkpoints.pretrained import FromPretrained

CASES = ["vision_shared_relpos", "vision_perlayer_relpos"]
FORWARD = {"atol": 1e-5, "rtol": 1e-4}
LATER = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> GoldenCase:
    return GoldenCase(request.param)


@pytest.fixture
def model(case: GoldenCase, tmp_path: Path) -> Data2Vec:
    return FromPretrained.from_pretrained(case.write_official_file(tmp_path)).train()


def train_mode(model: Data2Vec) -> Data2Vec:
    model.train()
    model.teacher.eval()
    return model


def optimizer_of(case: GoldenCase, model: Data2Vec) -> torch.optim.Optimizer:
    options = dict(case.json["optimizer"])
    name = options.pop("name")
    return getattr(torch.optim, name)(model.student.parameters(), **options)


def test_loss_targets_and_layer_results(case: GoldenCase, model: Data2Vec) -> None:
    batch = case.batch()
    loss = train_mode(model).training_step(batch, 0)
    torch.testing.assert_close(loss, torch.tensor(case.facts["loss_first_step"]), **FORWARD)
    torch.testing.assert_close(model.targets(batch), case.tensors["teacher.targets_all"], **FORWARD)
    kind = {"block": "end", "ffn": "fc"}[model.make_targets.layer_results]
    for layer, result in zip(model.averaged_layers, model.teacher_layer_results(batch), strict=True):
        torch.testing.assert_close(result, case.tensors[f"teacher.layer{layer}.{kind}"], **FORWARD)
    predictions, _ = model.predictions(batch)
    torch.testing.assert_close(predictions, case.tensors["out.pred_masked"], **FORWARD)


def test_gradients(case: GoldenCase, model: Data2Vec) -> None:
    train_mode(model).training_step(case.batch(), 0).backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.student.parameters() if p.grad is not None])
    torch.testing.assert_close(norm, torch.tensor(case.facts["grad_norm"]), rtol=1e-4, atol=0.0)
    for parameter in model.student.parameters():
        assert parameter.grad is not None
        parameter.data = parameter.grad
    gradients = official_state_dict(model)["model"]
    for name, expected in case.group("grad.").items():
        torch.testing.assert_close(gradients[name], expected, rtol=1e-4, atol=1e-6)


def test_three_optimiser_and_ema_steps(case: GoldenCase, model: Data2Vec) -> None:
    batch, optimizer = case.batch(), optimizer_of(case, train_mode(model))
    for step in (1, 2, 3):
        facts = case.facts["steps"][step - 1]
        loss = model.training_step(batch, 0)
        torch.testing.assert_close(loss, torch.tensor(facts["loss"]), **LATER)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert model.ema_teacher.decay(step) == pytest.approx(facts["ema_decay_applied_after_step"], abs=1e-12)
        model.ema_teacher.update(model, step)
        state = official_state_dict(model)
        for name, expected in case.group(f"step{step}.student.").items():
            torch.testing.assert_close(state["model"][name], expected, **LATER)
        for name, expected in case.group(f"step{step}.teacher.").items():
            torch.testing.assert_close(state["model_ema"][name], expected, **LATER)
    for part, entry in (("model", "final_student"), ("model_ema", "final_teacher")):
        for name, (norm, total, *_) in case.facts[entry].items():
            if part == "model_ema" and name in ("mask_token", "lm_head.weight", "lm_head.bias"):
                continue  # the official teacher averages these too and never uses them; ours has none
            tensor = state[part][name]
            torch.testing.assert_close(tensor.norm(), torch.tensor(norm), **LATER)
            torch.testing.assert_close(tensor.sum(), torch.tensor(total), rtol=1e-4, atol=1e-3)


def test_official_state_dict_is_the_inverse_of_reading(case: GoldenCase, model: Data2Vec) -> None:
    state = official_state_dict(model)
    student, teacher = case.group("model."), case.group("teacher_init.")
    assert set(state["model"]) == set(student)
    assert set(state["model_ema"]) == set(teacher)
    for name, tensor in student.items():
        assert torch.equal(state["model"][name], tensor)
    for name, tensor in teacher.items():
        if name not in ("mask_token", "lm_head.weight", "lm_head.bias"):
            assert torch.equal(state["model_ema"][name], tensor)


def changed(case: GoldenCase, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The case's official file after `change`."""
    path = case.write_official_file(folder)
    file = torch.load(path, weights_only=False)
    change(file)
    torch.save(file, path)
    return path


def wrapped(state: dict[str, Any]) -> dict[str, Any]:
    return {f"module.{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.update(model=wrapped(file["model"]), model_ema=wrapped(file["model_ema"])),
        lambda file: file.update(model_ema=wrapped(file["model_ema"])),
        lambda file: file.update(args=vars(file["args"]), optimizer={"state": {}}, epoch=3, scaler={"scale": 1.0}),
        lambda file: vars(file["args"]).update(target_layers=[-2, -1]),
        lambda file: vars(file["args"]).update(target_layers="1, 2"),
    ],
    ids=["module.", "module. in teacher", "more entries", "list", "text"],
)
def test_other_spellings_of_a_file_give_the_same_model(
    case: GoldenCase, model: Data2Vec, tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    other = FromPretrained.from_pretrained(changed(case, tmp_path, change))
    assert other.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: vars(file["args"]).pop("target_layers"), "target_layers is None"),
        (lambda file: vars(file["args"]).update(target_layers="top"), "target_layers is 'top'"),
        (lambda file: vars(file["args"]).update(target_layers=[1, 40]), "there are blocks 0 to 2 only"),
        (lambda file: file.update(args=None), "Meta's 'model' with 'cfg' or 'args'"),
        (lambda file: file.update(model_ema="teacher"), "its weights are a str, where named tensors are expected"),
        (lambda file: file["model"].update(step=3), "among its weights is 'step', which is no tensor but int"),
        (lambda file: file["model"].pop("blocks.0.mlp.fc1.weight"), "weight 'blocks.0.mlp.fc1.weight' is missing"),
    ],
)
def test_a_file_that_does_not_fit_together_is_refused_in_one_line(
    case: GoldenCase, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = changed(case, tmp_path, change)
    with pytest.raises(ValueError, match=message) as error:
        FromPretrained.from_pretrained(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_misspelt_part_or_no_size_is_refused_and_not_guessed(case: GoldenCase, tmp_path: Path) -> None:
    path = case.write_official_file(tmp_path)
    with pytest.raises(ValueError, match="part is 'techer': choose 'student' or 'teacher'"):
        load_backbone(path, part="techer")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="holds no patch"):
        load_backbone(path, image_size=0)


def test_the_first_block_alone_with_its_own_table(tmp_path: Path) -> None:
    """One block has one table: read as a shared one, it gives the released code's result of that block."""
    case = GoldenCase("vision_perlayer_relpos")

    def cut(file: dict[str, Any]) -> None:
        for part in ("model", "model_ema"):
            file[part] = {name: tensor for name, tensor in file[part].items() if not re.match(r"blocks\.[1-9]", name)}
        vars(file["args"]).update(target_layers=[0])

    model = FromPretrained.from_pretrained(changed(case, tmp_path, cut))
    (result,) = model.teacher_layer_results(case.batch())
    torch.testing.assert_close(result, case.tensors["teacher.layer0.fc"], **FORWARD)
    table = case.group("model.")["blocks.0.attn.relative_position_bias_table"]
    assert torch.equal(official_state_dict(model)["model"]["rel_pos_bias.relative_position_bias_table"], table)
