"""ImageClassifier: what it starts from, batches that people bring, and layers that are unfrozen on the way."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import tiny_backbone, trainer
from torch.utils.data import DataLoader

from d2v_lightning import Backbone, GLUEClassifier, ImageClassifier, Optimization, TextEncoder, Transformer
from d2v_lightning.configurable import build
from d2v_lightning.flavour import pl
from d2v_lightning.nn.normalization import IMAGENET, INCEPTION
from d2v_lightning.support.errors import UserError


def test_a_backbone_of_another_modality_is_refused() -> None:
    text = Backbone(TextEncoder(16, 40, 20, mask_id=39), Transformer(dim=16, depth=1, num_heads=2))
    with pytest.raises(ValueError, match="ImageClassifier needs an image backbone, this one has a TextEncoder"):
        ImageClassifier(num_classes=2, backbone=text)
    with pytest.raises(ValueError, match="GLUEClassifier needs a text backbone, this one has a ImageEncoder"):
        GLUEClassifier(backbone=tiny_backbone())


def classifier(mix: float = 0.0) -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(3, tiny_backbone(), mixup=mix, cutmix=0.0, optimization=Optimization(lr=1e-3, warmup=2))


def pictures(number: int, batch_size: int) -> DataLoader[Any]:
    """Plain (picture, class) tuples."""
    generator = torch.Generator().manual_seed(0)
    rows = [(torch.randn(3, 16, 16, generator=generator), place % 3) for place in range(number)]
    return DataLoader(rows, batch_size=batch_size)  # type: ignore[arg-type]


def test_what_its_pictures_are_normalised_with_is_said_once_where_it_is_new(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing known, something else asked for, and neither: a model that is built again says nothing."""
    caplog.set_level("INFO")
    model = classifier()
    assert model.encoder.normalization == IMAGENET
    assert model.config["init_args"]["mean"] == IMAGENET.mean
    assert "the backbone does not say how its pictures were normalised: taken are ImageNet's" in caplog.text
    caplog.clear()
    assert build(model.config).encoder.normalization == IMAGENET
    assert not caplog.text
    half = {"mean": [0.5] * 3, "std": [0.5] * 3}
    other = ImageClassifier(3, model.backbone, **half)
    assert other.encoder.config["init_args"]["std"] == other.config["init_args"]["std"] == half["std"]
    assert "normalised with mean [0.5, 0.5, 0.5], std [0.5, 0.5, 0.5], as asked for; the backbone was" in caplog.text
    caplog.clear()
    assert build(other.config).encoder.normalization == INCEPTION
    assert not caplog.text
    with pytest.raises(UserError, match=r"model.mean has 1 values for 3 channels: give one per channel"):
        ImageClassifier(3, tiny_backbone(), mean=[0.5], std=[0.5])


def test_an_odd_batch_is_mixed_as_the_even_one_with_its_last_picture_twice() -> None:
    model = classifier(mix=0.8)
    images, labels = torch.randn(5, 3, 16, 16), torch.tensor([0, 1, 2, 0, 1])
    drawn = []

    def mix(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        drawn.append(len(images))
        return 0.25 * images + 0.75 * images.flip(0), labels.float()[:, None]

    model.mix = mix
    mixed, soft = model._mixed(images, labels)
    assert drawn == [6]
    assert mixed.shape == images.shape
    assert soft.shape == (5, 1)
    for place, partner in enumerate((4, 4, 3, 2, 1)):
        torch.testing.assert_close(mixed[place], 0.25 * images[place] + 0.75 * images[partner])
    run = trainer([], -1, max_epochs=1)
    run.fit(classifier(mix=0.8), pictures(13, 4))  # the last one is alone
    assert run.global_step == 4


def test_tuples_and_tensors_of_a_plain_loader_are_taken() -> None:
    model, quiet = classifier(), trainer([], 2)
    quiet.fit(model, pictures(8, 4), pictures(6, 4))
    labelled = torch.cat([rows["probabilities"] for rows in quiet.predict(model, pictures(6, 4)) or []])
    alone = DataLoader([picture for picture, _ in pictures(6, 4).dataset], batch_size=4)  # type: ignore[arg-type]
    assert torch.equal(labelled, torch.cat([rows["probabilities"] for rows in quiet.predict(model, alone) or []]))
    with pytest.raises(ValueError, match="the batch has no 'labels': classification needs"):
        quiet.validate(model, alone, verbose=False)


class Rates(pl.Callback):
    """Of the last parameter group, and the factor that the schedule is at, before every batch."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, float, float]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        groups = trainer.optimizers[0].param_groups
        self.seen.append((len(groups), groups[-1]["lr"], groups[0]["lr"]))


@pytest.mark.filterwarnings("ignore:.*exists and is not empty")
def test_an_unfrozen_backbone_follows_the_schedule_and_resumes(tmp_path: Path) -> None:
    def run(folder: Path, **options: Any) -> tuple[ImageClassifier, Rates]:
        rates, model = Rates(), classifier()
        saver = pl.callbacks.ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
        unfreezer = pl.callbacks.BackboneFinetuning(
            unfreeze_backbone_at_epoch=1, lambda_func=lambda epoch: 1.0, initial_denom_lr=1
        )
        callbacks = [rates, saver, unfreezer, pl.callbacks.LearningRateMonitor()]
        going = trainer(callbacks, -1, folder, max_epochs=4, logger=pl.loggers.CSVLogger(folder))
        going.fit(model, pictures(12, 4), **options)
        assert going.global_step == 12
        return model, rates

    whole, rates = run(tmp_path / "whole")
    assert [groups for groups, _, _ in rates.seen] == [2] * 3 + [3] * 9
    _, first, peak = rates.seen[3]
    for _, added, own in rates.seen[3:6]:
        assert added / first == pytest.approx(own / peak)
    resumed, _ = run(tmp_path / "resumed", ckpt_path=str(tmp_path / "whole" / "epoch=2.ckpt"))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_unfreezing_on_two_devices_is_refused() -> None:
    model: Any = classifier()
    model._trainer = SimpleNamespace(
        world_size=2, callbacks=[pl.callbacks.BackboneFinetuning(unfreeze_backbone_at_epoch=1)]
    )
    with pytest.raises(UserError, match="BackboneFinetuning on 2 devices: gradients of what it unfreezes"):
        model.optimization.configure(model, 12)
