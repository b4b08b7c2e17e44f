"""Learning rates, EMA decays and layer-wise rates against tables made by the official code."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from golden_case import GOLDEN
from tiny import tiny_backbone

from d2v_lightning import Data2Vec, EMATeacher, ImageClassifier, Optimization
from d2v_lightning.configurable import build
from d2v_lightning.optim.optimization import decays_weight, layer_id
from d2v_lightning.optim.schedules import cosine, polynomial, tri_stage

CONFIGS = Path(__file__).parents[2] / "configs"
TABLES = json.loads((GOLDEN / "schedules.json").read_text())


def rate(name: str, options: dict[str, Any], step: int) -> float:
    """Our rate for a row of the table, from its official options."""
    if name.startswith("beit cosine"):
        per_epoch = options["niter_per_ep"]
        total, warmup = options["epochs"] * per_epoch, options["warmup_epochs"] * per_epoch
        return cosine(step, total, options["base_value"], warmup, floor=options["final_value"], inclusive=True)
    peak = options["lr"][0]
    if name.startswith("cosine"):
        warmup, floor = options["warmup_updates"], options.get("min_lr", 0.0)
        return cosine(step, options["max_update"], peak, warmup, floor, init=options.get("warmup_init_lr", 0.0))
    if name.startswith("polynomial"):
        end, power = options.get("end_learning_rate", 0.0), options.get("power", 1.0)
        return polynomial(step, options["total_num_update"], peak, options["warmup_updates"], end, power)
    if "phase_ratio" in options:
        stages = [int(options["max_update"] * ratio) for ratio in options["phase_ratio"]]
    else:
        stages = [options["warmup_steps"], options["hold_steps"], options["decay_steps"]]
    return tri_stage(step, peak, *stages, final_scale=options.get("final_lr_scale", 0.01))


LR_ROWS = [name for name in TABLES["lr"] if "tri_phase" not in name]  # no recipe uses BEiT's three-phase schedule


@pytest.mark.parametrize("name", LR_ROWS)
def test_learning_rates(name: str) -> None:
    row = TABLES["lr"][name]
    # At `max_update`, where no update is made any more, fairseq's cosine has begun a second period.
    last = row["options"]["max_update"] if name.startswith("cosine") else None
    values = [(step, value) for step, value in row["values"] if isinstance(step, int) and step != last]
    assert len(values) > 5
    for step, value in values:
        assert rate(name, row["options"], step) == pytest.approx(value, rel=1e-9, abs=1e-15), step


def test_a_recipe_follows_the_published_image_schedule() -> None:
    row = TABLES["lr"]["beit cosine_scheduler d2v1 vision ViT-B pretrain lr"]
    factor = Data2Vec.from_recipe("image_base", {"student.backbone.transformer.depth": 6}).optimization.factor(
        800 * 625
    )
    for step, value in row["values"]:
        assert 2e-3 * factor(step) == pytest.approx(value, rel=1e-9, abs=1e-15)


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
