"""What becomes of a picture: its channels, its normalisation, what evaluation shows of it and what augmentation does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import DIGITS, of_tree, ready
from PIL import Image

from datamodules import ImageDataModule
from datamodules.image.transforms import as_channels, evaluation_transform


def test_evaluation_shows_whole_unaltered_digits_when_asked_to() -> None:
    from sklearn.datasets import load_digits

    data = ImageDataModule(**DIGITS, task="classify", crop_share=1.0, mean=[0.0], std=[1.0])
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    places = [data._source("test")._places[index] for index in batch["index"]]  # type: ignore[attr-defined]
    assert torch.allclose(batch["inputs"][:, 0], torch.tensor(load_digits().images[places] / 16).float(), atol=1 / 255)
    assert batch["labels"].tolist() == load_digits().target[places].tolist()


def test_without_a_model_the_normalisation_is_imagenets(tree: Path) -> None:
    for name in ("train", "val"):
        for path in (tree / name).rglob("*.png"):
            Image.new("RGB", (20, 24), (255, 255, 255)).save(path)
    expected = [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    for task in ("pretrain", "classify"):
        batch = next(iter(ready(of_tree(tree, task=task)).val_dataloader()))  # type: ignore[call-overload]
        assert batch["inputs"].mean((0, 2, 3)).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("shape", [(37, 53), (100, 67), (32, 32), (33, 47), (61, 160)])
def test_evaluation_is_that_of_the_release(shape: tuple[int, int]) -> None:
    """`build_transform` of `beit/datasets.py` and `mae_finetuning_image_dataset.py`: Resize(size / .875), CenterCrop."""
    from torchvision import transforms

    released = transforms.Compose(
        [
            transforms.Resize(36, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    shown = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))
    ours = evaluation_transform((32, 32), 32 / 36, [0.5] * 3, [0.5] * 3, "bicubic")
    torch.testing.assert_close(ours(shown), released(shown), rtol=0, atol=1e-6)


def test_every_kind_of_picture_becomes_the_channels_asked_for() -> None:
    ramp = np.arange(16).reshape(4, 4)
    grey = Image.fromarray((ramp * 17).astype(np.uint8))
    deep = Image.fromarray((ramp * 17 * 257).astype(np.uint16))
    colour = grey.convert("RGB")
    for given in (grey, deep, colour, colour.convert("RGBA"), colour.quantize(), grey.convert("LA")):
        for channels, shape in ((1, (4, 4)), (3, (4, 4, 3)), (4, (4, 4, 4))):
            values = np.asarray(as_channels(given, channels))
            assert values.shape == shape
            first = values if channels == 1 else values[..., 0]
            assert np.abs(first.astype(int) - ramp * 17).max() <= 1, given.mode
    with pytest.raises(ValueError, match="floating-point"):
        as_channels(grey.convert("F"), 1)


def test_random_augmentation_with_the_strongest_posterisation_runs(tree: Path) -> None:
    data = ready(of_tree(tree, task="classify", rand_augment="rand-m10-n8-mstd0-inc1"))
    assert all(torch.isfinite(batch["inputs"]).all() for batch in data.train_dataloader())


def test_a_strip_is_shown_by_its_middle_without_scaling_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.transforms.v2 import functional

    def noted(picture: Any, size: list[int], *arguments: Any, **named: Any) -> Any:
        sizes.append(size)
        return resize(picture, size, *arguments, **named)

    sizes: list[list[int]] = []
    resize = functional.resize
    monkeypatch.setattr(functional, "resize", noted)
    transform = evaluation_transform((32, 32), 1.0, [0.0], [1.0], "bilinear")
    for shape in ((2, 60_000), (60_000, 2)):
        values = np.zeros(shape, np.uint8)
        values[tuple(slice(side // 2 - min(4, side // 2), side // 2 + 4) for side in shape)] = 255
        shown = transform(Image.fromarray(values))
        assert shown.shape == (1, 32, 32)
        assert shown.min() == 1
        assert max(sizes[-1]) <= 32 * 17
    plain = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 90), dtype=np.uint8))
    assert transform(plain).shape == (1, 32, 32)
    assert sizes[-1] == [32, 72]
