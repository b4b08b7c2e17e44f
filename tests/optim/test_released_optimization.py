"""Rates of every published recipe over its whole run, and what its weight decay reaches, against the official formulas.

Formulas are those of fairseq 3d262bb (`fairseq/optim/lr_scheduler`, `fairseq/optim/composite.py`) and of data2vec_vision
(`beit/utils.py`, `beit/optim_factory.py`), written out here. Numbers are those of the official configs and commands.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import yaml
from tiny import tiny_backbone
from torch import nn

from d2v_lightning import ImageClassifier, Optimization
from d2v_lightning.configurable import build
from d2v_lightning.recipes import recipe_path
from tests.test_recipes import made_small

Rate = Callable[[int, float], float]
"""(updates made, layer scale) -> rate of the next update."""


def beit_cosine(lr: float, min_lr: float, warmup: int, total: int) -> Rate:
    """`cosine_scheduler` of beit/utils.py: linspace(0, lr, warmup), then a cosine. Both engines multiply by `lr_scale`."""

    def rate(step: int, scale: float) -> float:
        if step < warmup:
            return lr * step / (warmup - 1) * scale
        return (min_lr + 0.5 * (lr - min_lr) * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))) * scale

    return rate


def fairseq_cosine(lr: float, min_lr: float, warmup: int, total: int) -> Rate:
    """`cosine_lr_scheduler.py`; `composite.py` scales a group's `lr` and hands it `min_lr` as it is."""

    def rate(step: int, scale: float) -> float:
        peak = lr * scale
        floor = peak if peak < min_lr else min_lr
        if step < warmup:
            return floor + step * (peak - floor) / warmup  # `warmup_init_lr` is -1, which is `min_lr`
        return floor + 0.5 * (peak - floor) * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))

    return rate


def tri_stage(lr: float, ratio: tuple[float, float, float], final_scale: float, total: int) -> Rate:
    """`tri_stage_lr_scheduler.py`, whose `init_lr_scale` is .01."""
    warmup, hold, decay = (int(total * part) for part in ratio)

    def rate(step: int, scale: float) -> float:
        peak = lr * scale
        if step < warmup:
            return 0.01 * peak + (peak - 0.01 * peak) / warmup * step
        if step < warmup + hold:
            return peak
        return peak * math.exp(math.log(final_scale) / decay * (step - warmup - hold))

    return rate


def polynomial(lr: float, warmup: int, total: int) -> Rate:
    """`polynomial_decay_schedule.py` down to 0."""
    return lambda step, scale: lr * (step / warmup if step <= warmup else 1 - (step - warmup) / (total - warmup))


CTC = (0.1, 0.4, 0.5)
EPOCH = 1_281_167 // 2048  # updates of 2,048 pictures; the share of the warm-up is the same in every batch
OFFICIAL: dict[str, tuple[int, Rate]] = {
    # data2vec_vision, beit/README.md; `--min_lr` of run_cyclical.py is 1e-5, of run_class_finetuning.py 1e-6.
    "image_base": (800 * EPOCH, beit_cosine(2e-3, 1e-5, 10 * EPOCH, 800 * EPOCH)),
    "image_large": (800 * EPOCH, beit_cosine(1e-3, 1e-5, 80 * EPOCH, 800 * EPOCH)),
    "image_large_second_half": (800 * EPOCH, beit_cosine(1e-3, 1e-5, 40 * EPOCH, 800 * EPOCH)),
    "imagenet_base": (100 * EPOCH, beit_cosine(4e-3, 1e-6, 10 * EPOCH, 100 * EPOCH)),
    "imagenet_large": (50 * EPOCH, beit_cosine(5e-3, 1e-6, 5 * EPOCH, 50 * EPOCH)),
    # examples/data2vec/config/v2/{base,large,huge}_*_only_task.yaml.
    "image_v2_base": (375_300, fairseq_cosine(1e-3, 0.0, 50_040, 375_300)),
    "image_v2_large": (375_300, fairseq_cosine(4e-4, 0.0, 50_040, 375_300)),
    "image_v2_huge": (500_000, fairseq_cosine(4e-4, 0.0, 50_040, 500_000)),  # huge_images14
    "image_v2_huge16": (375_300, fairseq_cosine(4e-4, 0.0, 50_040, 375_300)),  # huge_images
    "audio_v2_base": (400_000, fairseq_cosine(7.5e-4, 0.0, 8_000, 400_000)),
    "audio_v2_large": (600_000, fairseq_cosine(4e-4, 0.0, 10_000, 600_000)),
    "text_v2_base": (1_000_000, fairseq_cosine(2e-4, 0.0, 4_000, 1_000_000)),
    "text_v2_large": (600_000, fairseq_cosine(1e-4, 0.0, 4_000, 600_000)),
    "text_v2_large_1m": (1_000_000, fairseq_cosine(1e-4, 0.0, 4_000, 1_000_000)),  # large_text_only_task_pgrp_1M
    # examples/data2vec/config/vision/finetuning/mae_imagenet_{,large_,huge_}clean.yaml.
    "imagenet_v2_base": (250_200, fairseq_cosine(1e-3, 1e-6, 16_000, 250_200)),
    "imagenet_v2_large": (125_200, fairseq_cosine(5e-4, 1e-7, 16_000, 125_200)),
    "imagenet_v2_huge": (125_200, fairseq_cosine(5e-4, 1e-20, 16_000, 125_200)),
    # examples/data2vec/config/{audio,text}/pretraining.
    "audio_base": (400_000, tri_stage(5e-4, (0.03, 0.9, 0.07), 0.01, 400_000)),
    "text_base_bert": (1_000_000, tri_stage(2e-4, (0.05, 0.8, 0.15), 0.01, 1_000_000)),  # paper 1.0, section 4.3
    "text_base": (1_000_000, fairseq_cosine(2e-4, 0.0, 10_000, 1_000_000)),
    # examples/wav2vec/config/finetuning/{base,vox}_*.yaml, which serve 2.0 too.
    **{
        f"librispeech_{version}{labels}{size}": (total, tri_stage(rate, CTC, 0.05, total))
        for version in ("", "v2_")
        for labels, total, base, large in (
            ("10m", 13_000, 5e-5, 1e-4),
            ("1h", 13_000, 5e-5, 3e-4),
            ("10h", 20_000, 5e-5, 1e-4),
            ("100h", 80_000, 3e-5, 3e-5),
            ("960h", 320_000, 1e-4, 3e-5),
        )
        for size, rate in (("", base), ("_large", large))
    },
    # examples/data2vec/config/v2/text_finetuning; 1.0's in examples/roberta/config/finetuning have the same shape.
    "cola": (5_336, polynomial(2e-5, 320, 5_336)),
    "mnli": (123_873, polynomial(2e-5, 7_432, 123_873)),
    "mrpc": (2_296, polynomial(2e-5, 137, 2_296)),
    "qnli": (33_112, polynomial(2e-5, 1_986, 33_112)),
    "qqp": (113_272, polynomial(2e-5, 28_318, 113_272)),
    "rte": (2_036, polynomial(2e-5, 122, 2_036)),
    "sst2": (20_935, polynomial(2e-5, 1_256, 20_935)),
    "stsb": (3_598, polynomial(4e-5, 214, 3_598)),
}
DEPTHS = {
    "imagenet_base": 12,
    "imagenet_large": 24,
    "imagenet_v2_base": 12,
    "imagenet_v2_large": 24,
    "imagenet_v2_huge": 32,
}


def optimization_of(name: str) -> Optimization:
    made: Optimization = build(yaml.safe_load(recipe_path(name).read_text())["model"]["init_args"]["optimization"])
    return made


def scales_of(name: str, module: nn.Module) -> dict[str, float]:
    """Official layer scale of each parameter of an ImageClassifier, by our names. 1.0: `get_num_layer_for_vit` of
    beit/optim_factory.py; 2.0: `mae_image_classification.py`, whose scales are on prenet and blocks alone."""
    decay, depth = optimization_of(name).layer_decay, DEPTHS[name]
    assert decay == (0.75 if "v2_large" in name or "v2_huge" in name else 0.65)
    scales = {}
    for parameter, _ in module.named_parameters():
        if ".blocks." in parameter:
            block = int(parameter.partition(".blocks.")[2].partition(".")[0])
            scales[parameter] = decay ** (depth - block)
        elif ".encoder." in parameter and "_v2_" not in name:
            scales[parameter] = decay ** (depth + 1)
        else:
            scales[parameter] = 1.0
    return scales


@pytest.mark.parametrize("name", OFFICIAL)
def test_rates_of_a_recipe_are_the_official_ones_from_the_first_update_to_the_last(name: str) -> None:
    total, official = OFFICIAL[name]
    optimization, module = optimization_of(name), nn.Linear(2, 2)
    scales = dict.fromkeys(("weight", "bias"), 1.0)
    if name in DEPTHS:
        with torch.device("meta"):
            backbone = tiny_backbone(depth=DEPTHS[name])
            module = ImageClassifier(10, backbone, mixup=0, cutmix=0)
        scales = scales_of(name, module)
    warmup = optimization.warmup * total if optimization.warmup < 1 else optimization.warmup
    configured = optimization.configure(module, total)
    scheduler = configured["lr_scheduler"]["scheduler"]
    names = {id(parameter): parameter_name for parameter_name, parameter in module.named_parameters()}
    for step in (0, 1, int(warmup) - 1, int(warmup), int(warmup) + 1, total // 2, total - total // 10, total - 1):
        scheduler.last_epoch = step
        for group, rate in zip(configured["optimizer"].param_groups, scheduler.get_lr(), strict=True):
            for parameter in group["params"]:
                place = names[id(parameter)]
                assert rate == pytest.approx(official(step, scales[place]), rel=1e-9, abs=1e-30), (step, place)


def test_a_layer_whose_peak_is_below_the_floor_keeps_its_rate() -> None:
    """`if self.max_lr < cfg.min_lr: cfg.min_lr = self.max_lr` of cosine_lr_scheduler.py."""
    factor = Optimization(lr=1.0, schedule="fairseq_cosine", warmup=10, final_lr=0.1).factor(100, peak=0.05)
    assert [factor(step) for step in (0, 10, 99)] == [1.0, 1.0, 1.0]


# ---- weight decay --------------------------------------------------------------------------------------------------------

# beit/optim_factory.py `get_parameter_groups` decays what has two dimensions and is no bias, but for `pos_embed` and
# `cls_token` (`no_weight_decay` of modeling_cyclical.py and modeling_finetune.py). `lm_head` is our decoder.
BEIT_BACKBONE = {
    "encoder.patch_embed.weight",
    "transformer.position_bias.shared_table",
    *(f"transformer.blocks.0.{part}.weight" for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
}
BEIT = {
    "image_base": {
        "student.mask_token",
        "student.decoder.proj.weight",
        *(f"student.backbone.{n}" for n in BEIT_BACKBONE),
    },
    "imagenet_large": {"head.weight", *(f"backbone.{name}" for name in BEIT_BACKBONE)},
}
# fairseq decays everything. Plain `adam` has one group (1.0 speech and text, audio_v2_base, GLUE). `composite.py` looks for
# "optimizer_config" in the options of an optimiser, where it never is, and so leaves `weight_decay_scale` unread (the rest
# of 2.0, fine-tuning of images too).
FAIRSEQ = {
    "audio_base": 0.01,
    "text_base": 0.01,
    "text_base_bert": 0.01,
    "image_v2_base": 0.05,
    "image_v2_large": 0.05,
    "image_v2_huge": 0.05,
    "image_v2_huge16": 0.05,
    "audio_v2_base": 0.01,
    "audio_v2_large": 0.01,
    "text_v2_base": 0.01,
    "text_v2_large": 0.01,
    "text_v2_large_1m": 0.01,
    "imagenet_v2_base": 0.05,
    "imagenet_v2_large": 0.05,
    "imagenet_v2_huge": 0.05,
    "librispeech_10h": 0.0,
    "librispeech_v2_10h": 0.0,
    "librispeech_v2_960h_large": 0.0,
    **dict.fromkeys(("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli"), 0.1),
}


def decays(name: str) -> dict[str, float]:
    """Weight decay of each trainable parameter of a recipe's model, one block deep."""
    tree: Any = yaml.safe_load(recipe_path(name).read_text())["model"]
    kind = tree["class_path"].rpartition(".")[2]
    source = {"ImageClassifier": "image", "SpeechCTC": "audio", "GLUEClassifier": "text"}.get(kind, "")
    version = "_v2" if "_v2" in name else ""
    pretraining: Any = yaml.safe_load(recipe_path(f"{source}{version}_base").read_text())["model"] if source else tree
    pretraining = made_small(pretraining)
    backbone = pretraining["init_args"]["student"]["init_args"]["backbone"]
    backbone["init_args"]["transformer"]["init_args"]["depth"] = 1
    pretraining["init_args"]["targets"]["init_args"]["average_top_k_layers"] = 1
    with torch.device("meta"):
        module = build({**tree, "init_args": {**tree["init_args"], "backbone": backbone}} if source else pretraining)
    groups = module.optimization.parameter_groups(module)
    of = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    return {name: of[id(parameter)] for name, parameter in module.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("name", BEIT)
def test_1_0_for_images_spares_what_beit_spares(name: str) -> None:
    found = decays(name)
    assert {name for name, decay in found.items() if decay} == BEIT[name]
    assert set(found.values()) == {0.0, 0.05}
    assert len(found) > 2 * len(BEIT[name])


@pytest.mark.parametrize("name", FAIRSEQ)
def test_everything_else_decays_whole_as_released(name: str) -> None:
    found = decays(name)
    assert set(found.values()) == {FAIRSEQ[name]}
    assert any("norm" in name for name in found)
    assert ("backbone.encoder.position.class_token" in " ".join(found)) == ("image" in name)


def test_layer_decay_of_letters_is_on_the_blocks_alone() -> None:
    """`wav2vec2_asr.py`: `layer_decay ** (num_layers - i)` on prenet and blocks of 2.0; no released command sets it."""
    tree: Any = yaml.safe_load(recipe_path("librispeech_v2_10h").read_text())["model"]
    pretraining = made_small(yaml.safe_load(recipe_path("audio_v2_base").read_text())["model"])
    tree["init_args"]["backbone"] = pretraining["init_args"]["student"]["init_args"]["backbone"]
    tree["init_args"]["optimization"]["init_args"] |= {"lr": 1.0, "layer_decay": 0.5, "encoder_decays": False}
    with torch.device("meta"):
        module = build(tree)
    rates = {
        id(parameter): group["lr"]
        for group in module.optimization.parameter_groups(module)
        for parameter in group["params"]
    }
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            inside = ".blocks." in name
            expected = 0.5 ** (3 - int(name.partition(".blocks.")[2].partition(".")[0])) if inside else 1.0
            assert rates[id(parameter)] == expected, name
