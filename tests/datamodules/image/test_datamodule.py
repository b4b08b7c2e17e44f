"""Batches are pure functions of (seed, epoch, index) from every source, and broken data is named in one line."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pictures import CLASSES, DIGITS, of_tree, picture, ready

from d2v_lightning import ImageEncoder
from d2v_lightning.flavour import pl
from d2v_lightning.nn.normalization import IMAGENET, INCEPTION, Normalization
from datamodules import BlockMaskCollator, ImageDataModule


def test_samples_and_masks_are_functions_of_seed_epoch_and_index(tree: Path) -> None:
    def by_key(epoch: int, **arguments: Any) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        loader = ready(of_tree(tree, **arguments)).train_dataloader()
        loader.sampler.set_epoch(epoch)
        return {
            int(index): (inputs, mask)
            for batch in loader
            for index, inputs, mask in zip(batch["index"], batch["inputs"], batch["mask"], strict=True)
        }

    torch.manual_seed(0)
    reference = by_key(1)
    torch.manual_seed(1)
    for same in (by_key(1, num_workers=2), by_key(1, batch_size=3)):
        assert same.keys() == reference.keys()
        for index, (inputs, mask) in reference.items():
            assert torch.equal(same[index][0], inputs)
            assert torch.equal(same[index][1], mask)
    for other in (by_key(2), by_key(1, seed=1)):
        assert all(not torch.equal(other[index][0], inputs) for index, (inputs, _) in reference.items())
        assert any(not torch.equal(other[index][1], mask) for index, (_, mask) in reference.items())


def test_pretraining_hides_the_published_share_in_every_row_and_mask(tree: Path) -> None:
    data = ready(of_tree(tree, image_size=56, num_masks=3, batch_size=8))
    batch = next(iter(data.train_dataloader()))
    assert batch["mask"].shape == (8, 3, 196)
    assert (batch["mask"].sum(-1) == 120).all()
    assert not torch.equal(batch["mask"][:, 0], batch["mask"][:, 1])
    scaled = BlockMaskCollator((8, 8))
    assert (scaled.num_masked, scaled.min_block) == (39, 5)
    assert BlockMaskCollator((8, 8), mask_ratio=0.6).num_masked == 38


def test_validation_masks_stay_the_same_over_epochs() -> None:
    loader = ready(ImageDataModule(**DIGITS)).val_dataloader()
    first = next(iter(loader))  # type: ignore[call-overload]
    loader.sampler.set_epoch(3)  # type: ignore[union-attr]
    again = next(iter(loader))  # type: ignore[call-overload]
    assert torch.equal(first["mask"], again["mask"])
    assert torch.equal(first["inputs"], again["inputs"])


def test_classification_batches_have_labels_and_no_masks(tree: Path) -> None:
    data = ready(of_tree(tree, task="classify"))
    batch = next(iter(data.train_dataloader()))
    assert set(batch) == {"inputs", "labels", "index"}
    assert data.class_names == list(CLASSES)
    assert data.num_classes == 3
    assert sorted(label for item in data.val_dataloader() for label in item["labels"].tolist()) == [0, 0, 1, 1, 2, 2]  # type: ignore[union-attr]
    train, held_out = data.probe_dataloaders()
    assert (len(train.dataset), len(held_out.dataset)) == (12, 6)  # type: ignore[arg-type]
    assert set(next(iter(train))) == {"inputs", "labels", "index"}


def test_predict_takes_files_and_folders_in_order(tree: Path) -> None:
    files = [str(tree / "test" / "bee"), str(tree / "val" / "ape" / "0.png")]
    data = ready(of_tree(tree, task="classify", predict_files=files), "predict")
    (batch,) = list(data.predict_dataloader())
    assert set(batch) == {"inputs", "index"}
    assert [Path(path).name for path in data.predict_paths] == ["0.png", "1.png", "0.png"]
    assert batch["index"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_broken_files_are_replaced_and_named_once(tree: Path, num_workers: int) -> None:
    folder = tree / "train" / "ape"
    (folder / "0.png").write_bytes(b"")
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:300])
    (folder / "2.png").write_text("this is no picture")
    loader = ready(of_tree(tree, num_workers=num_workers)).train_dataloader()
    with pytest.warns(UserWarning, match="unreadable") as caught:
        batches = list(loader)
    (warning,) = [str(entry.message) for entry in caught if "unreadable" in str(entry.message)]
    assert warning.startswith("3 unreadable file(s) left out")
    assert all(str(folder / f"{i}.png") in warning for i in range(3))
    seen = [index for batch in batches for index in batch["index"].tolist()]
    assert len(seen) == 12
    assert not {0, 1, 2} & set(seen)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = list(ready(of_tree(tree)).train_dataloader())
    assert seen == [index for batch in again for index in batch["index"].tolist()]


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_what_is_missing_is_said_in_one_line(tree: Path, tmp_path: Path) -> None:
    import shutil

    (tree / "empty").mkdir()
    with pytest.raises(FileNotFoundError) as error:
        ready(of_tree(tree / "empty"))
    assert "no picture in" in one_line(error)
    with pytest.raises(FileNotFoundError) as error:
        ready(of_tree(tree / "nowhere"))
    assert "nowhere is not a folder: point `root`" in one_line(error)
    with pytest.raises(FileNotFoundError) as error:
        ready(of_tree(tree / "train", task="classify"))
    assert "has no train split" in one_line(error)

    (tree / "val" / "dog").mkdir()
    picture(0).save(tree / "val" / "dog" / "0.png")
    with pytest.raises(ValueError, match="dog") as error:
        ready(of_tree(tree, task="classify"))
    assert "not in the training split" in one_line(error)

    shutil.rmtree(tree / "val")
    with pytest.raises(FileNotFoundError) as error:
        ready(of_tree(tree, task="classify"))
    assert "has no val split" in one_line(error)
    assert "set val_fraction" in one_line(error)

    for path in (tree / "train").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be read") as error:
        ready(of_tree(tree))
    assert "0.png" in one_line(error)


def test_pictures_smaller_than_the_patch_grid_are_refused(tree: Path) -> None:
    for path in tree.rglob("*.png"):
        picture(0, (3, 3)).save(path)
    with pytest.raises(ValueError, match="has 3x3 pixels, fewer than the 4x4 patches") as error:
        ready(of_tree(tree))
    one_line(error)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 18}, "image_size 18x18 is not a whole number of patches of 4x4"),
        ({"image_size": 2}, "image_size 2x2 is not a whole number of patches of 4x4"),
        ({"num_channels": 2}, "num_channels 2: pictures have 1, 3, 4"),
        ({"mean": [0.5], "std": [0.5]}, "mean has 1 values for 3 channels"),
        ({"mean": [0.5] * 3}, r"mean is \[0.5, 0.5, 0.5\], std is None: give both, or neither"),
        ({"mean": [0.5] * 3, "std": [0.5, 0.5, 0.0]}, r"std is \[0.5, 0.5, 0.0\]: give numbers above 0"),
        (
            {"batch_size": 13},
            "batch_size 13 x 1 device.s. is more than 12 training pictures: set batch_size to at most 12",
        ),
        ({"mask_ratio": 1.5}, "mask_ratio 1.5: permitted is 0 < mask_ratio < 1"),
        ({"num_masked_patches": 16}, r"num_masked 16: permitted is 1\.\.15"),
        ({"task": "cluster"}, "task 'cluster': permitted are 'pretrain', 'classify'"),
        ({"dataset": "digits"}, "give one of them"),
        ({"scale": (0.0, 1.0)}, "scale .0.0, 1.0.: permitted is 0 < lower"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(arguments: dict[str, Any], message: str, tree: Path) -> None:
    with pytest.raises(ValueError, match=message) as error:
        ready(of_tree(tree, **arguments)).train_dataloader()
    one_line(error)


def with_trainer(data: ImageDataModule, world_size: int = 1, **encoder: Any) -> SimpleNamespace:
    trainer = SimpleNamespace(
        callbacks=[],
        world_size=world_size,
        accumulate_grad_batches=1,
        fit_loop=pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False).fit_loop,
        lightning_module=SimpleNamespace(encoder=SimpleNamespace(**encoder)) if encoder else None,
    )
    data.trainer = trainer  # type: ignore[assignment]
    return trainer


def test_sizes_are_read_off_the_model_and_must_agree_with_it(tree: Path) -> None:
    encoder = {"image_size": (16, 12), "patch_size": (4, 4), "in_channels": 1}
    data = of_tree(tree, image_size=None, patch_size=None, num_channels=None)
    with_trainer(data, **encoder)
    batch = next(iter(ready(data).train_dataloader()))
    assert batch["inputs"].shape == (4, 1, 16, 12)
    assert batch["mask"].shape == (4, 1, 12)
    data = of_tree(tree, image_size=16, patch_size=None, num_channels=None)
    with_trainer(data, **encoder)
    with pytest.raises(ValueError, match=r"image_size 16 of the data is not the model's \(16, 12\)"):
        data.setup("fit")


def test_normalisation_is_the_models_and_must_agree_with_it(tree: Path) -> None:
    def agreed(encoder: Any, **arguments: Any) -> ImageDataModule:
        data = of_tree(tree, **arguments)
        with_trainer(data)
        data.trainer.lightning_module = SimpleNamespace(encoder=encoder)  # type: ignore[union-attr, assignment]
        return ready(data)

    other = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    told, untold = ImageEncoder(16, 4, 3, 8, **other), ImageEncoder(16, 4, 3, 8)
    for task in ("pretrain", "classify"):
        assert agreed(told, task=task).seen_as.items() >= other.items()
    agreed(untold, **other, task="classify")
    assert untold.normalization == Normalization(**other)
    with pytest.raises(
        ValueError, match=r"data.mean and data.std are mean \[0.5, .*, the model's are mean \[0.1"
    ) as error:
        agreed(told, mean=[0.5] * 3, std=[0.5] * 3, task="classify")
    one_line(error)
    agreed(told, mean=[0.5] * 3, std=[0.5] * 3)  # pre-training may start from weights that saw others
    assert told.normalization == INCEPTION
    assert agreed(SimpleNamespace(image_size=16)).seen_as["mean"] == IMAGENET.mean  # a module of somebody else


def test_effective_batch_is_reached_by_accumulation(tree: Path) -> None:
    data = of_tree(tree, batch_size=2, effective_batch=12)
    trainer = with_trainer(data, world_size=2)
    data.setup("fit")
    assert trainer.accumulate_grad_batches == 3

    data = of_tree(tree, batch_size=2, effective_batch=15)
    trainer = with_trainer(data, world_size=2)
    with pytest.warns(UserWarning, match="effective_batch 15 cannot be reached with .* = 4 images: using 16"):
        data.setup("fit")
    assert trainer.accumulate_grad_batches == 4

    data = of_tree(tree, batch_size=8, effective_batch=12)
    with_trainer(data, world_size=2)
    with pytest.raises(ValueError, match="= 16 images is more than effective_batch 12: set batch_size to at most 6"):
        data.setup("fit")
