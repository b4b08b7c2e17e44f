"""Pictures of every ImageNet row are cropped, changed, normalised and evaluated as in the release."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from d2v_lightning import Backbone, ImageClassifier, ImageEncoder, Transformer
from d2v_lightning.recipes import recipe_path
from datamodules import ImageDataModule

IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
INCEPTION = [0.5] * 3, [0.5] * 3
# 1.0, pre-training: `run_cyclical.py --imagenet_default_mean_and_std`, whose `DataAugmentationForBEiT` (beit/datasets.py)
# jitters by .4, flips with .5 and crops .08 to 1 (beit/transforms.py), train_interpolation bicubic.
# 2.0, pre-training: `MaeImageDataset` (examples/data2vec/data/mae_image_dataset.py): crops .2 to 1, flips, nothing else.
# Fine-tuning: `build_transform` of beit/datasets.py with the defaults of run_class_finetuning.py, and of
# examples/data2vec/data/mae_finetuning_image_dataset.py: timm's create_transform (crops .08 to 1, flips with .5), --aa
# rand-m9-mstd0.5-inc1, --reprob .25, --remode pixel, --recount 1. Evaluation of both: Resize(224 / (224 / 256)),
# CenterCrop(224). The README's command for 1.0's fine-tuning leaves --imagenet_default_mean_and_std out.
PICTURES: dict[str, Any] = {
    **dict.fromkeys(("image_base", "image_large", "image_large_second_half"), ((0.08, 1.0), 0.4, IMAGENET)),
    **dict.fromkeys(
        ("image_v2_base", "image_v2_large", "image_v2_huge", "image_v2_huge16"), ((0.2, 1.0), 0.0, IMAGENET)
    ),
    **dict.fromkeys(("imagenet_base", "imagenet_large"), ((0.08, 1.0), None, INCEPTION)),
    **dict.fromkeys(("imagenet_v2_base", "imagenet_v2_large", "imagenet_v2_huge"), ((0.08, 1.0), None, IMAGENET)),
}


def shown(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Steps of a recipe in training and in evaluation, by their classes, with the model that the recipe makes."""
    data: Any = ImageDataModule.from_recipe(name, {"root": "/data/imagenet"})
    model: Any = yaml.safe_load(recipe_path(name).read_text())["model"]["init_args"]
    size = {"image_size": 224, "patch_size": 14 if name.endswith("huge") else 16, "dim": 8}
    if name.startswith("imagenet"):
        seen = {each: model[each] for each in ("mean", "std")}
        model = ImageClassifier(2, Backbone(ImageEncoder(**size), Transformer(8, 1, 2)), **seen)
    else:
        encoder = model["student"]["init_args"]["backbone"]["init_args"]["encoder"]["init_args"]
        model = SimpleNamespace(encoder=ImageEncoder(**{**encoder, **size}))
    data.trainer = SimpleNamespace(lightning_module=model)
    data._fit_to_model("fit")
    steps: Any = [data._transform(training).transforms for training in (True, False)]
    train, evaluation = ({type(step).__name__: step for step in each} for each in steps)
    assert len(train) == len(steps[0]), "each step once"
    return train, evaluation


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_shown_as_released(name: str) -> None:
    scale, jitter, seen = PICTURES[name]
    train, evaluation = shown(name)
    for steps in (train, evaluation):
        found = steps["Normalize"]
        assert ([round(float(x), 4) for x in found.mean], [round(float(x), 4) for x in found.std]) == seen
    crop = train.get("RandomResizedCrop") or train["RandomResizedCropAndInterpolation"]
    assert tuple(crop.scale) == scale
    assert tuple(crop.ratio) == pytest.approx((3 / 4, 4 / 3))
    assert list(crop.size) == [224, 224]
    assert str(crop.interpolation).endswith(("BICUBIC", "bicubic"))
    assert train["RandomHorizontalFlip"].p == 0.5
    if jitter is not None:
        assert ("ColorJitter" in train) == bool(jitter)
        assert not jitter or train["ColorJitter"].brightness == train["ColorJitter"].saturation == (0.6, 1.4)
        assert not jitter or (train["ColorJitter"].contrast, train["ColorJitter"].hue) == ((0.6, 1.4), None)
        assert not {"RandAugment", "RandomErasing"} & set(train)
    else:
        policy, erasing = train["RandAugment"], train["RandomErasing"]
        assert "ColorJitter" not in train
        assert (policy.num_layers, policy.choice_weights) == (2, None)
        assert {op.magnitude for op in policy.ops} == {9}
        assert {op.hparams["magnitude_std"] for op in policy.ops} == {0.5}
        assert {op.name for op in policy.ops} >= {"PosterizeIncreasing", "SolarizeIncreasing", "ColorIncreasing"}
        assert (erasing.probability, erasing.mode, erasing.max_count) == (0.25, "pixel", 1)
        assert erasing.per_pixel
        assert not erasing.rand_color
    assert evaluation["_ResizeToCover"].size == (256, 256)
    assert str(evaluation["_ResizeToCover"].mode).endswith("BICUBIC")
    assert list(evaluation["CenterCrop"].size) == [224, 224]
