"""What fine-tuning starts with is what the released commands say, not what pre-training happened to leave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from d2v_lightning import ImageClassifier, SpeechCTC
from d2v_lightning.configurable import build
from d2v_lightning.recipes import from_recipe, recipe_path
from datamodules import ImageDataModule
from tests.test_recipes import made_small

IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
INCEPTION = [0.5] * 3, [0.5] * 3
# 1.0, pre-training: run_cyclical.py --imagenet_default_mean_and_std; fine-tuning: run_class_finetuning.py without it, so
# that timm's inception values hold (beit/datasets.py). 2.0: mae_image_dataset.py, mae_finetuning_image_dataset.py.
PIXELS = {
    **dict.fromkeys(("image_base", "image_large", "image_large_second_half"), IMAGENET),
    **dict.fromkeys(("image_v2_base", "image_v2_large", "image_v2_huge", "image_v2_huge16"), IMAGENET),
    **dict.fromkeys(("imagenet_base", "imagenet_large"), INCEPTION),
    **dict.fromkeys(("imagenet_v2_base", "imagenet_v2_large", "imagenet_v2_huge"), IMAGENET),
}
STRAY = {
    "dropout": 0.31,
    "attention_dropout": 0.32,
    "activation_dropout": 0.33,
    "input_dropout": 0.34,
    "layer_drop": 0.35,
    "drop_path": 0.36,
}
"""Of a pre-training, each another one."""


@pytest.mark.parametrize("name", PIXELS)
def test_pictures_are_normalised_as_released(name: str) -> None:
    data = ImageDataModule.from_recipe(name, {"root": "/data/imagenet"})
    data._size = (224, 224)
    for training in (True, False):
        steps: Any = data._transform(training)
        (found,) = [step for step in steps.transforms if type(step).__name__ == "Normalize"]
        assert ([round(float(x), 4) for x in found.mean], [round(float(x), 4) for x in found.std]) == PIXELS[name]


def pretrained(name: str, folder: Path) -> str:
    """A tiny network of a recipe, pre-trained with dropouts that no fine-tuning wants."""
    tree = made_small(yaml.safe_load(recipe_path(name).read_text())["model"])
    tree["init_args"]["student"]["init_args"]["backbone"]["init_args"]["transformer"]["init_args"] |= STRAY
    build(tree).save_pretrained(folder / "pretrained")
    return str(folder / "pretrained")


def trunk_of(module: Any) -> dict[str, float]:
    """Probabilities that act in the network, block by block, not those that it was asked for."""
    trunk = module.backbone.transformer
    return {
        "dropout": max(block.dropout.p for block in trunk.blocks),
        "attention_dropout": max(block.attn.attention_dropout for block in trunk.blocks),
        "activation_dropout": max(block.mlp.activation_dropout.p for block in trunk.blocks),
        "input_dropout": trunk.input_dropout.p,
        "layer_drop": trunk.layer_drop,
        "drop_path": max(block.drop_path.probability for block in trunk.blocks),
    }


# image 1.0: run_class_finetuning.py, --attn_drop_rate 0.0 (default, and the Large command), --drop 0.0, and the README's
# --drop_path; 2.0: mae_image_classification.py, "regularization overwrites", and drop_path_rate of the YAMLs; speech:
# examples/wav2vec/config/finetuning/{base_10h,vox_10h}.yaml, over defaults of 0 in wav2vec2_asr.py; text:
# examples/roberta/config/finetuning/*.yaml (1.0), class defaults of data2vec2.py (2.0).
TRUNKS = {
    ("image_base", "imagenet_base"): {"drop_path": 0.2},
    ("image_large", "imagenet_large"): {"drop_path": 0.25},
    ("image_v2_base", "imagenet_v2_base"): {"drop_path": 0.1},
    ("image_v2_large", "imagenet_v2_large"): {"drop_path": 0.2},
    ("audio_base", "librispeech_10h"): {"activation_dropout": 0.1, "layer_drop": 0.05},
    ("audio_v2_base", "librispeech_v2_10h"): {"activation_dropout": 0.1, "layer_drop": 0.05},
    ("text_base", "rte"): {"dropout": 0.1, "attention_dropout": 0.1, "input_dropout": 0.1},
    ("text_v2_base", "sst2"): {"dropout": 0.1, "attention_dropout": 0.1, "input_dropout": 0.1},
}


@pytest.mark.parametrize(("before", "after"), TRUNKS, ids="-".join)
def test_a_fine_tuning_start_keeps_no_dropout_of_pre_training(before: str, after: str, tmp_path: Path) -> None:
    module = from_recipe(after, "model", {"checkpoint": pretrained(before, tmp_path)})
    assert trunk_of(module) == {**dict.fromkeys(STRAY, 0.0), **TRUNKS[before, after]}
    again = build(module.config)
    assert trunk_of(again) == trunk_of(module), "a checkpoint of the fine-tuned model says the same"


def test_dropouts_can_be_asked_for(tmp_path: Path) -> None:
    asked = {name: value for name, value in STRAY.items() if name != "input_dropout"}
    module = ImageClassifier(2, checkpoint=pretrained("image_base", tmp_path), **asked)
    assert trunk_of(module) == {**asked, "input_dropout": asked["dropout"]}


def test_convolutions_that_are_trained_get_their_whole_gradient(tmp_path: Path) -> None:
    tree = made_small(yaml.safe_load(recipe_path("audio_base").read_text())["model"])
    tree["init_args"]["student"]["init_args"]["backbone"]["init_args"]["encoder"]["init_args"]["feature_grad_mult"] = (
        0.0
    )
    build(tree).save_pretrained(tmp_path / "pretrained")
    module = SpeechCTC(checkpoint=str(tmp_path / "pretrained"), freeze_convolutions=False, freeze_trunk_steps=0)
    assert module.encoder.feature_grad_mult == build(module.config).encoder.feature_grad_mult == 1.0


# Of fairseq examples/data2vec/config/v2/text_finetuning/{cola,mnli,...,sts_b}.yaml: `lr`, `warmup_updates`, `max_update`,
# `batch_size`, `best_checkpoint_metric`; and the rate of 1.0, examples/roberta/config/finetuning/*.yaml. The rest is
# the same there but for the metric, see tests/commands/test_glue_protocol.py.
GLUE = {
    "cola": (2e-5, 320, 5336, 16, "mcc", 1e-5),
    "mnli": (2e-5, 7432, 123873, 32, "accuracy", 1e-5),
    "mrpc": (2e-5, 137, 2296, 16, "acc_and_f1", 1e-5),
    "qnli": (2e-5, 1986, 33112, 32, "accuracy", 1e-5),
    "qqp": (2e-5, 28318, 113272, 32, "acc_and_f1", 1e-5),
    "rte": (2e-5, 122, 2036, 16, "accuracy", 2e-5),
    "sst2": (2e-5, 1256, 20935, 32, "accuracy", 1e-5),
    "stsb": (4e-5, 214, 3598, 16, "pearson_and_spearman", 2e-5),
}
SCORES = {"mcc": ("matthews",), "acc_and_f1": ("accuracy", "f1"), "pearson_and_spearman": ("pearson", "spearman")}


@pytest.mark.parametrize("task", GLUE)
def test_glue_is_fine_tuned_as_released(task: str, tmp_path: Path) -> None:
    """And `pooler_dropout` 0.0 in data2vec_text.py and data2vec_text_classification.py."""
    rate, warmup, updates, batch, metric, first_rate = GLUE[task]
    module = from_recipe(task, "model", {"checkpoint": pretrained("text_base", tmp_path)})
    assert module.dropout.p == 0.0
    assert module.kind.num_classes == {"mnli": 3, "stsb": 1}.get(task, 2)
    assert module.kind.metrics == SCORES.get(metric, ("accuracy",)), "`score` is the mean of these"
    made = module.optimization
    assert (made.lr, made.warmup, made.schedule_steps, made.schedule, made.final_lr) == (
        rate, warmup, updates, "polynomial", 0.0
    )  # fmt: skip
    assert (made.betas, made.eps, made.weight_decay, made.decay_all) == ((0.9, 0.98), 1e-6, 0.1, True)
    text = recipe_path(task).read_text()
    data, recipe = from_recipe(task, "data"), yaml.safe_load(text)
    assert (data.batch_size, data.effective_batch, data.max_tokens, data.max_length) == (batch, batch, 4400, 512)
    assert recipe["model_checkpoint"] == {"monitor": "val/score", "mode": "max", "filename": "best"}
    assert recipe["trainer"] == {"max_epochs": 10, "precision": "bf16-mixed"}, "and no clipping: `clip_norm` 0.0"
    assert first_rate == rate or f"the rate is {first_rate:g}".replace("e-0", "e-") in text


def test_the_released_rte_ends_before_its_schedule(tmp_path: Path) -> None:
    module = from_recipe("rte", "model", {"checkpoint": pretrained("text_base", tmp_path)})
    factor = module.optimization.factor(1560)
    assert factor(122) == 1.0
    assert factor(1559) == pytest.approx((2036 - 1559) / (2036 - 122))
