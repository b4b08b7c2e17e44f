"""What fine-tuning starts with is what the released commands say, not what pre-training happened to leave."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from d2v_lightning import GLUEClassifier, ImageClassifier, SpeechCTC
from d2v_lightning.configurable import build
from d2v_lightning.recipes import from_recipe, recipe_path
from tests.test_recipes import made_small

STRAY = {
    "dropout": 0.31,
    "attention_dropout": 0.32,
    "activation_dropout": 0.33,
    "input_dropout": 0.34,
    "layer_drop": 0.35,
    "drop_path": 0.36,
}
"""Of a pre-training, each another one."""


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """A tiny network of a recipe, pre-trained with dropouts that no fine-tuning wants."""

    @cache
    def write(name: str) -> str:
        tree = made_small(yaml.safe_load(recipe_path(name).read_text())["model"])
        tree["init_args"]["student"]["init_args"]["backbone"]["init_args"]["transformer"]["init_args"] |= STRAY
        folder = tmp_path_factory.mktemp(name) / "pretrained"
        build(tree).save_pretrained(folder)
        return str(folder)

    return write


def dropouts_of(module: Any) -> dict[str, float]:
    """Probabilities that act in the network, block by block, not those that it was asked for."""
    trunk = module.backbone.transformer
    inside = set(trunk.modules())
    outside = [part.p for part in module.modules() if isinstance(part, nn.Dropout) and part not in inside]
    return {
        "dropout": max(block.dropout.p for block in trunk.blocks),
        "attention_dropout": max(block.attn.attention_dropout for block in trunk.blocks),
        "activation_dropout": max(block.mlp.activation_dropout.p for block in trunk.blocks),
        "output_dropout": max(block.mlp.output_dropout.p for block in trunk.blocks),
        "input_dropout": trunk.input_dropout.p,
        "layer_drop": trunk.layer_drop,
        "drop_path": max(block.drop_path.probability for block in trunk.blocks),
        "head": max(outside, default=0.0),
    }


# image 1.0: run_class_finetuning.py, --attn_drop_rate 0.0 (default, and the Large command), --drop 0.0, and the README's
# --drop_path; 2.0: mae_image_classification.py, "regularization overwrites", and drop_path_rate of the YAMLs. Speech:
# examples/wav2vec/config/finetuning, for 1.0 and 2.0, over defaults of 0 in wav2vec2_asr.py (final_dropout too); timm's
# Mlp of 2.0 drops after fc2 as well. Its drop_path matches no option of either network. Text: examples/roberta/config/
# finetuning (1.0), class defaults of data2vec2.py and D2vTextConfig (2.0); pooler_dropout is 0 in both.
SENTENCES = {"dropout": 0.1, "attention_dropout": 0.1, "input_dropout": 0.1}
DROPOUTS = {
    ("image_base", "imagenet_base"): {"drop_path": 0.2},
    ("image_large", "imagenet_large"): {"drop_path": 0.25},
    ("image_v2_base", "imagenet_v2_base"): {"drop_path": 0.1},
    ("image_v2_large", "imagenet_v2_large"): {"drop_path": 0.2},
    ("image_v2_huge", "imagenet_v2_huge"): {"drop_path": 0.2},
    **{
        (f"audio_{version}base", f"librispeech_{version}{labels}{size}"): {
            "activation_dropout": 0.1,
            "output_dropout": 0.1 if version else 0.0,
            "layer_drop": 0.05 if labels + size == "10h" else 0.1,
        }
        for version in ("", "v2_")
        for labels in ("10m", "1h", "10h", "100h", "960h")
        for size in ("", "_large")
    },
    **{
        (f"text_{version}base", task): SENTENCES
        for version in ("", "v2_")
        for task in ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli")
    },
}


@pytest.mark.parametrize(("before", "after"), DROPOUTS)
def test_a_fine_tuning_start_has_the_released_dropouts(
    before: str, after: str, pretrained: Callable[[str], str]
) -> None:
    module = from_recipe(after, "model", {"checkpoint": pretrained(before)})
    found = dropouts_of(module)
    assert found == {**dict.fromkeys(found, 0.0), **DROPOUTS[before, after]}
    assert dropouts_of(build(module.config)) == found, "a checkpoint of the fine-tuned model says the same"


def test_networks_of_2_0_know_what_fine_tuning_and_their_decoders_need() -> None:
    """`AltBlock` in every 2.0 network; torch's default in every decoder but text's, see tests/nn/test_decoder.py."""
    paths = sorted(recipe_path("image_v2_base").parent.glob("*_v2_*.yaml"))
    assert len(paths) >= 9
    for path in paths:
        student = yaml.safe_load(path.read_text())["model"]["init_args"]["student"]["init_args"]
        trunk = student["backbone"]["init_args"]["transformer"]["init_args"]
        assert trunk["activation_dropout_twice"] is True, path.stem
        init = student["decoder"]["init_args"].get("init", "default")
        assert init == ("normal" if path.stem.startswith("text") else "default"), path.stem


@pytest.mark.parametrize("before", ["audio_base", "audio_v2_base"])
def test_a_tenth_of_the_ffns_outputs_is_dropped_while_letters_of_2_0_are_learned(
    before: str, pretrained: Callable[[str], str]
) -> None:
    """`AltBlock` with `mlp_drop` .1, run once: 10.0 % of the outputs of its FFN were 0 in training; none in 1.0's layers."""
    torch.manual_seed(0)
    module = SpeechCTC(checkpoint=pretrained(before), freeze_trunk_steps=0)
    mlp = module.backbone.transformer.blocks[1].get_submodule("mlp")
    zeros: list[float] = []
    mlp.register_forward_hook(lambda part, inputs, output: zeros.append(float((output == 0).float().mean())))
    for training in (True, False):
        module.train(training)(torch.randn(2, 16000))
    assert zeros == [pytest.approx(0.1 if "v2" in before else 0.0, abs=0.03), 0.0]


@pytest.mark.parametrize(
    ("kind", "before", "options"),
    [
        (ImageClassifier, "image_base", {"num_classes": 2}),
        (SpeechCTC, "audio_v2_base", {}),
        (GLUEClassifier, "text_v2_base", {}),
    ],
)
def test_dropouts_can_be_asked_for(
    kind: Any, before: str, options: dict[str, Any], pretrained: Callable[[str], str]
) -> None:
    asked = {name: value for name, value in STRAY.items() if name != "input_dropout"}
    found = dropouts_of(kind(checkpoint=pretrained(before), **options, **asked))
    assert found == {
        **asked,
        "input_dropout": asked["dropout"],
        "output_dropout": asked["activation_dropout"] if "v2" in before else 0.0,
        "head": 0.0,
    }


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
def test_glue_is_fine_tuned_as_released(task: str, pretrained: Callable[[str], str]) -> None:
    rate, warmup, updates, batch, metric, first_rate = GLUE[task]
    module = from_recipe(task, "model", {"checkpoint": pretrained("text_base")})
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
    assert first_rate == rate or f"its rate, {first_rate:g}".replace("e-0", "e-") in text.replace("\n# ", " ")


def test_the_released_rte_ends_before_its_schedule(pretrained: Callable[[str], str]) -> None:
    module = from_recipe("rte", "model", {"checkpoint": pretrained("text_base")})
    factor = module.optimization.factor(1560)
    assert factor(122) == 1.0
    assert factor(1559) == pytest.approx((2036 - 1559) / (2036 - 122))
