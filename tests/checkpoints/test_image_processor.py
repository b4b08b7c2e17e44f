"""Pictures are shown to an exported model by transformers as by us, and to theirs by us as by transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import of_tree
from PIL import Image
from tiny import tiny_backbone, trainer

from d2v_lightning import Backbone, ImageClassifier, ImageEncoder, Transformer, load_backbone
from d2v_lightning.checkpoints.huggingface import save_huggingface
from d2v_lightning.checkpoints.image_processor import read_processor, write_processor
from d2v_lightning.nn.normalization import IMAGENET, INCEPTION, Normalization
from d2v_lightning.support.errors import UserError

SEEN: dict[str, Any] = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}
NAMES = ["ape", "bee", "cat"]


def classifier() -> ImageClassifier:
    torch.manual_seed(0)
    backbone = tiny_backbone(32)
    model = ImageClassifier(3, backbone, head_std=0.5, norm_eps=1e-6, class_names=NAMES, **SEEN)
    torch.nn.init.normal_(model.encoder.patch_embed.weight, std=0.5)  # it looks closely, and says different things
    model.head.bias.data.copy_(torch.tensor([-2.7, -1.1, 2.2]))
    return model


@pytest.mark.filterwarnings("ignore")
def test_a_pipeline_of_transformers_says_what_predict_says(tmp_path: Path) -> None:
    """Its default backend resizes on its own and rounds otherwise than Pillow: pixels of 0 to 255 differ by one or two, and
    probabilities by little, also on noise, the hardest case. With its backend "pil" the pixels are ours. It rounds half a
    pixel of the crop's margin down, where torchvision, and with it the release, rounds to even."""
    from transformers import AutoImageProcessor, pipeline

    model = classifier()
    assert save_huggingface(model, tmp_path / "theirs") == "Data2VecVisionForImageClassification"
    (tmp_path / "photos").mkdir()
    sizes = [
        (37, 51),
        (64, 64),
        (20, 30),
        (45, 200),
        (90, 41),
    ]  # the last becomes 79 high: 47 are cut off, 24 above (23)
    for number, size in enumerate(sizes):
        noise = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "photos" / f"{number}.png")
    data = of_tree(None, image_size=32, predict_files=str(tmp_path / "photos"), task="classify", batch_size=9)
    (rows,) = trainer([], 1).predict(model, data)  # type: ignore[misc]
    ours = rows["probabilities"]  # type: ignore[index]
    paths = [str(tmp_path / "photos" / f"{number}.png") for number in range(len(sizes))]

    def said(**options: Any) -> torch.Tensor:
        classify = pipeline("image-classification", str(tmp_path / "theirs"), device="cpu", **options)
        found = [{each["label"]: each["score"] for each in row} for row in classify(paths, top_k=3)]
        return torch.tensor([[row[name] for name in NAMES] for row in found])

    assert ours.max() < 0.95, "probabilities that could differ"
    assert ours.std(dim=0).max() > 0.01
    even = [*range(len(sizes) - 1)]
    torch.testing.assert_close(said()[even], ours[even], atol=0.02, rtol=0)
    over_pillow = AutoImageProcessor.from_pretrained(tmp_path / "theirs", backend="pil")
    exactly = said(image_processor=over_pillow)
    torch.testing.assert_close(exactly[even], ours[even], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(exactly[-1], ours[-1], atol=1e-3), "half a pixel aside"


def test_a_directory_brings_back_what_was_written(tmp_path: Path) -> None:
    model = classifier()
    save_huggingface(model, tmp_path, evaluation={"crop_share": 1.0, "interpolation": "bilinear"})
    back = ImageClassifier.from_pretrained(tmp_path)
    assert {name: back.config["init_args"][name] for name in SEEN} == SEEN
    assert back.class_names == NAMES
    encoder = ImageEncoder(32, 4, 3, 8)
    tree: Any = read_processor(tmp_path, encoder, "there")
    assert encoder.normalization == Normalization(**SEEN)
    assert tree["init_args"] == {"crop_share": 1.0, "interpolation": "bilinear"}
    for share in (0.875, 0.9, 224 / 256, 0.7):
        (tmp_path / "preprocessor_config.json").unlink()
        write_processor(encoder, tmp_path, {"crop_share": share})
        tree = read_processor(tmp_path, encoder, "there")
        assert int(32 / share + 1e-6) == int(32 / tree["init_args"]["crop_share"] + 1e-6)


def reads(options: dict[str, Any] | str, folder: Path, channels: int = 3) -> tuple[ImageEncoder, Any]:
    text = options if isinstance(options, str) else json.dumps(options)
    (folder / "preprocessor_config.json").write_text(text)
    encoder = ImageEncoder(8, 4, channels, 8)
    return encoder, read_processor(folder, encoder, "there")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, INCEPTION),
        ({"image_mean": 0.5, "image_std": 0.5, "size": 224}, INCEPTION),
        ({"image_processor": {"image_mean": IMAGENET.mean, "image_std": IMAGENET.std}}, IMAGENET),
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_normalize": False}, Normalization([0.0] * 3, [1.0] * 3)),
        (
            {"image_mean": [0.0] * 3, "image_std": [1.0] * 3, "rescale_factor": 1 / 127.5},
            Normalization([0] * 3, [0.5] * 3),
        ),
        ({"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3}, INCEPTION),
        ({"do_rescale": False, "do_normalize": False}, Normalization([0.0] * 3, [1 / 255] * 3)),
    ],
)
def test_theirs_in_our_terms(options: dict[str, Any], expected: Normalization, tmp_path: Path) -> None:
    found = reads(options, tmp_path)[0].normalization
    assert found is not None
    assert found.agrees(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("[1]", "is a list: names and values are expected"),
        ("{", "is not JSON"),
        ({"image_processor": [1]}, r"image_processor is \[1\]"),
        ({"image_mean": "half", "image_std": [1] * 3}, "image_mean is 'half': it must be a list of numbers"),
        ({"image_mean": ["a"] * 3, "image_std": [1] * 3}, "image_mean is .*finite numbers"),
        ({"image_mean": [0.5], "image_std": [1] * 3}, "image_mean has 1 values for 3 channels"),
        ({"image_mean": [0.5] * 3, "image_std": [0] * 3}, r"image_std is \[0, 0, 0\]: give numbers above 0"),
        ('{"image_mean": [NaN, 0, 0], "image_std": [1, 1, 1]}', "finite numbers"),
        ({"image_mean": [0.5] * 3}, "image_std is None: give both"),
        ({"rescale_factor": "x"}, "rescale_factor is 'x'"),
        ({"rescale_factor": 0}, "rescale_factor is 0"),
        ({"rescale_factor": 10**400}, "rescale_factor is 1000"),
        (
            {"rescale_factor": 1e308, "image_mean": 1, "image_std": 1},
            r"preprocessor_config.json: std is \[0.0, 0.0, 0.0\]",
        ),
        ({"image_mean": [10**400] * 3, "image_std": [1] * 3}, "image_mean is .*finite numbers"),
        ({"do_normalize": 1}, "do_normalize of .* is 1, where true or false"),
        ({"image_mean": [0.5] * 3, "much": "x" * 2**20}, "bytes: settings of an image processor are expected"),
    ],
)
def test_nonsense_is_one_line_that_names_the_file(options: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as error:
        reads(options, tmp_path)
    assert "preprocessor_config.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_odd_sizes_and_unknown_resampling_are_left_open(tmp_path: Path) -> None:
    assert reads({"size": "x", "crop_size": -1, "do_center_crop": True, "resample": 1}, tmp_path)[1] is None
    assert reads({"size": 10**9, "crop_size": 8, "do_center_crop": True}, tmp_path)[1] is None, "no gigabytes of pixels"
    assert reads({"size": {"height": 8}, "do_center_crop": False}, tmp_path)[1]["init_args"] == {"crop_share": 1.0}


def test_what_nobody_said_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    save_huggingface(tiny_backbone(), tmp_path / "untold")
    assert "no preprocessor_config.json was written: the model does not say" in caplog.text
    assert load_backbone(tmp_path / "untold").encoder.normalization is None
    assert f"{tmp_path / 'untold'} does not say what its pictures are normalised with: there is no" in caplog.text
    tall = Backbone(ImageEncoder((8, 4), 4, 3, 8, **SEEN), Transformer(8, 1, 2))
    save_huggingface(tall, tmp_path / "tall")
    assert "its resizing knows squares only, and the model reads 8x4 pixels" in caplog.text
    grey = Backbone(ImageEncoder(8, 4, 1, 8, mean=[0.5], std=[0.5]), Transformer(8, 1, 2))
    save_huggingface(grey, tmp_path / "grey")
    assert "turn every picture into three channels, this model reads 1" in caplog.text
    assert load_backbone(tmp_path / "grey").encoder.normalization == ([0.5], [0.5])


def test_a_file_that_a_model_came_with_stays_and_may_not_contradict_it(tmp_path: Path) -> None:
    there = tmp_path / "preprocessor_config.json"
    text = json.dumps({"image_mean": SEEN["mean"], "image_std": SEEN["std"], "size": 384})
    there.write_text(text)
    write_processor(ImageEncoder(32, 4, 3, 8, **SEEN), tmp_path, {})
    assert there.read_text() == text
    with pytest.raises(
        UserError, match=r"preprocessor_config.json says mean .*, the model was trained with mean \[0.485"
    ):
        write_processor(ImageEncoder(32, 4, 3, 8, mean=IMAGENET.mean, std=IMAGENET.std), tmp_path, {})


@pytest.mark.parametrize("evaluation", [{"crop_share": "x"}, {"crop_share": 2.0}, {"interpolation": "round"}])
def test_stored_settings_of_another_kind_are_refused(evaluation: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the model's data has crop_share .* there are no such"):
        write_processor(ImageEncoder(32, 4, 3, 8, **SEEN), tmp_path, evaluation)
