"""Optimization: rates and weight decay of every parameter, the schedule of a run, and checkpoints of its state."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from golden_case import GOLDEN
from tiny import image_batches, ready_loader, tiny_backbone, tiny_image_model, trainer

from d2v_lightning import ImageClassifier, Optimization
from d2v_lightning.configurable import build
from d2v_lightning.flavour import pl
from d2v_lightning.optim.optimization import decays_weight, layer_id
from d2v_lightning.support.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"


TABLES = json.loads((GOLDEN / "schedules.json").read_text())


def test_a_recipe_follows_the_published_image_schedule() -> None:
    row = TABLES["lr"]["beit cosine_scheduler d2v1 vision ViT-B pretrain lr"]
    recipe = yaml.safe_load((CONFIGS / "pretrain" / "image_base.yaml").read_text())
    factor = build(recipe["model"]["init_args"]["optimization"]).factor(800 * 625)
    for step, value in row["values"]:
        assert 2e-3 * factor(step) == pytest.approx(value, rel=1e-9, abs=1e-15)


OURS = {
    "cls_token": "backbone.encoder.position.class_token",
    "patch_embed.proj.weight": "backbone.encoder.patch_embed.weight",
    "patch_embed.proj.bias": "backbone.encoder.patch_embed.bias",
    "rel_pos_bias.relative_position_bias_table": "backbone.transformer.position_bias.shared_table",
    "fc_norm.weight": "norm.weight",
    "fc_norm.bias": "norm.bias",
    "head.weight": "head.weight",
    "head.bias": "head.bias",
}


@pytest.mark.parametrize("name", list(TABLES["layerwise_lr"]))
def test_layerwise_rates_and_weight_decay(name: str) -> None:
    decay, depth = float(name.split()[-1]), 12
    parameters = dict(ImageClassifier(10, tiny_backbone(depth=depth), mixup=0, cutmix=0).named_parameters())
    for official, row in TABLES["layerwise_lr"][name].items():
        ours = OURS.get(official)
        if ours is None:
            ours = "backbone.transformer." + official.replace("gamma_1", "scale1.gamma").replace(
                "gamma_2", "scale2.gamma"
            )
        assert layer_id(ours, depth) == row["layer_id"], official
        assert decay ** (depth + 1 - layer_id(ours, depth)) == pytest.approx(row["lr_scale"], rel=1e-12), official
        assert decays_weight(ours, parameters[ours]) == row["weight_decay_applies"], official


def test_parameter_groups_hold_every_trainable_parameter_once_at_its_rate() -> None:
    model = ImageClassifier(10, tiny_backbone(), mixup=0, cutmix=0)
    groups = Optimization(lr=1.0, layer_decay=0.5, weight_decay=0.1).parameter_groups(model)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters() if parameter.requires_grad)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert rates[id(model.backbone.encoder.patch_embed.weight)] == 0.5**4
    assert rates[id(model.head.weight)] == 1.0


def test_2_0_decays_the_rates_of_blocks_alone() -> None:
    model = ImageClassifier(10, tiny_backbone(depth=3), mixup=0, cutmix=0)
    groups = Optimization(lr=1.0, layer_decay=0.5, encoder_decays=False).parameter_groups(model)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    position, blocks = model.backbone.encoder.position, model.backbone.transformer.blocks
    spared = [position.class_token, model.backbone.encoder.patch_embed.weight, model.norm.weight, model.head.weight]
    assert [rates[id(parameter)] for parameter in spared] == [1.0] * 4
    assert [{rates[id(parameter)] for parameter in block.parameters()} for block in blocks] == [{0.125}, {0.25}, {0.5}]


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    with pytest.raises(ValueError, match=r"warmup is 500 steps, the whole run has 100"):
        Optimization(warmup=500).configure(torch.nn.Linear(2, 2), total_steps=100)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hold": 1.5}, "hold is 1.5: it is a part of the run"),
        ({"lr": 1e-6}, "final_lr is 1e-05, above lr 1e-06: the rate would rise"),
        ({"schedule": "tri_stage", "final_lr": 0.0}, "final_lr is 0: 'tri_stage' falls by equal factors"),
    ],
)
def test_stages_without_a_meaning_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Optimization(**arguments)


def test_stages_that_do_not_fit_into_the_run_are_refused() -> None:
    stages = {"schedule": "tri_stage", "lr": 1e-3, "final_lr": 1e-5}
    with pytest.raises(UserError, match="warmup is 20 steps and hold 90, the whole schedule has 100"):
        Optimization(warmup=20, hold=0.9, **stages).factor(100)
    assert Optimization(warmup=0.1, hold=0.9, **stages).factor(100)(99) == 1.0


def test_a_schedule_may_be_longer_or_shorter_than_the_run() -> None:
    factor = Optimization(lr=1.0, schedule="polynomial", warmup=2, schedule_steps=10, final_lr=0.0).factor(6)
    assert [factor(step) for step in (1, 2, 5, 6)] == [0.5, 1.0, 0.625, 0.5]
    assert factor(10) == factor(12) == 0.0
    with pytest.raises(ValueError, match=r"warmup is 5 steps, the whole schedule \(schedule_steps\) has 4: give"):
        Optimization(warmup=5, schedule_steps=4).factor(100)
    with pytest.raises(ValueError, match=r"schedule_steps is 0: it must be 1 or more"):
        Optimization(schedule_steps=0)


@pytest.mark.parametrize(("size", "steps"), [("base", 250_200), ("large", 125_200), ("huge", 125_200)])
def test_the_2_0_rows_of_imagenet_warm_up_for_16_000_steps_of_the_published_length(size: str, steps: int) -> None:
    recipe = yaml.safe_load((CONFIGS / "finetune" / f"imagenet_v2_{size}.yaml").read_text())
    factor = build(recipe["model"]["init_args"]["optimization"]).factor(steps)
    assert recipe["trainer"]["max_steps"] == steps
    assert [factor(15_999) < 1.0, factor(16_000), factor(16_001) < 1.0] == [True, 1.0, True]


def test_a_run_that_only_time_ends_has_no_length_for_its_schedule() -> None:
    with pytest.raises(
        ValueError, match=r"the run has no length, which schedule 'cosine' with warmup 0.1 needs: set trainer"
    ):
        Optimization(warmup=0.1).factor(math.inf)
    factor = Optimization(schedule="constant", warmup=4).factor(math.inf)
    assert [factor(step) for step in (0, 3, 1000)] == [0.25, 1.0, 1.0]
    assert Optimization(warmup=4).factor(0)(0) == 0.0, "a run that only builds everything"


class GradientNorms(pl.Callback):
    """Norms of the gradient that the optimiser got."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self.norms.append(float(torch.nn.utils.get_total_norm(gradients)))


def test_mixed_precision_clips_gradients_with_the_fused_optimiser() -> None:
    norms = {}
    for clip in (None, 0.01):
        seen = GradientNorms()
        runner = trainer([seen], 2, gradient_clip_val=clip, precision="bf16-mixed")
        runner.fit(tiny_image_model(), ready_loader(image_batches([9, 9])))
        assert runner.optimizers[0].defaults["fused"]
        norms[clip] = seen.norms
    assert min(norms[None]) > 0.02
    assert norms[0.01] == pytest.approx([0.01, 0.01], rel=1e-3)


def test_a_checkpoint_does_not_bring_the_kernel_of_another_device() -> None:
    model = tiny_image_model()
    optimizer = model.optimization.configure(model, 10)["optimizer"]
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group["fused"] = None  # as written on a device that has none
    optimizer.load_state_dict(state)
    assert all(group["fused"] for group in optimizer.param_groups)
