"""Pictures of a run that goes on, or is tested, are normalised as those that its checkpoint was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pictures import of_tree, write_tree
from tiny import tiny_backbone, tiny_image_model, trainer

from d2v_lightning import Data2Vec, ImageClassifier, ImageEncoder, MultimodalData2Vec, load_backbone
from d2v_lightning.checkpoints.stored_normalization import take_over_normalization
from d2v_lightning.configurable import build
from d2v_lightning.flavour import pl
from d2v_lightning.nn.normalization import IMAGENET, INCEPTION, Normalization
from d2v_lightning.support.errors import UserError

OTHER: dict[str, Any] = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
OTHERS = Normalization(**OTHER)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("tree"))


def pretrained(tree: Path, folder: Path, **data: Any) -> str:
    """A checkpoint of one step."""
    run = trainer([pl.callbacks.ModelCheckpoint(folder, filename="last")], 1, folder)
    run.fit(tiny_image_model(), of_tree(tree, batch_size=4, num_masked_patches=8, min_block=2, **data))
    return str(folder / "last.ckpt")


def test_pre_training_writes_what_its_data_were_normalised_with(tree: Path, tmp_path: Path) -> None:
    path = pretrained(tree, tmp_path / "default")
    assert load_backbone(path).encoder.normalization == IMAGENET, "the datamodule's default, spelt out"
    path = pretrained(tree, tmp_path / "own", **OTHER)
    assert load_backbone(path, part="teacher").encoder.normalization == OTHERS
    model = Data2Vec.load_from_checkpoint(path)
    model.save_pretrained(tmp_path / "directory")
    assert load_backbone(tmp_path / "directory").encoder.normalization == OTHERS
    tuned = ImageClassifier(3, checkpoint=path)
    assert tuned.encoder.normalization == OTHERS
    assert {name: tuned.config["init_args"][name] for name in OTHER} == OTHER


def test_a_run_that_sees_other_pictures_than_its_checkpoint_is_refused(tree: Path, tmp_path: Path) -> None:
    path = pretrained(tree, tmp_path, **OTHER)
    usual = {"batch_size": 4, "num_masked_patches": 8, "min_block": 2}
    message = r"last.ckpt was trained on pictures of mean \[0.1, 0.2, 0.3\], std .*, this run has mean \[0.485, "
    for method in ("fit", "validate"):
        with pytest.raises(UserError, match=message):
            getattr(trainer([], 2, tmp_path), method)(tiny_image_model(), of_tree(tree, **usual), ckpt_path=path)
    trainer([], 2, tmp_path).fit(tiny_image_model(), of_tree(tree, **usual, **OTHER), ckpt_path=path)
    loaded = Data2Vec.load_from_checkpoint(path)
    trainer([], 2, tmp_path).validate(loaded, of_tree(tree, **usual), verbose=False)
    with pytest.raises(UserError, match=r"data.mean and data.std are mean \[0.5.*, the model's are mean \[0.1"):
        trainer([], 2).validate(loaded, of_tree(tree, **usual, mean=[0.5] * 3, std=[0.5] * 3), verbose=False)


def test_a_warm_start_sees_what_its_file_saw_unless_data_say_otherwise(
    tree: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = pretrained(tree, tmp_path, **OTHER)
    caplog.set_level("INFO")
    for data, expected in (({}, OTHERS), ({"mean": [0.5] * 3, "std": [0.5] * 3}, INCEPTION)):
        arguments = tiny_image_model().config["init_args"]
        model: Any = build({"class_path": "d2v_lightning.Data2Vec", "init_args": {**arguments, "checkpoint": path}})
        assert model.encoder.normalization == OTHERS
        usual = {"batch_size": 4, "num_masked_patches": 8, "min_block": 2}
        trainer([], 1, tmp_path).fit(model, of_tree(tree, **usual, **data))
        assert model.encoder.normalization == expected
        said = "as data says; the model started from mean [0.1, 0.2, 0.3]"
        assert caplog.text.count(said) == bool(data)


def test_a_file_tells_a_network_that_nobody_told(tmp_path: Path) -> None:
    model: Any = ImageClassifier(2, backbone=tiny_backbone(), **OTHER)
    fresh = tiny_backbone()
    take_over_normalization(torch.nn.ModuleDict({"backbone": fresh}), model.config, "file")
    assert fresh.encoder.normalization == OTHERS
    model.config["init_args"]["backbone"]["init_args"]["encoder"]["init_args"]["std"] = [0.1]
    with pytest.raises(UserError, match=r"^file: std has 1 values for 3 channels"):
        take_over_normalization(torch.nn.ModuleDict({"backbone": fresh}), model.config, "file")


def test_each_modality_has_its_own(tmp_path: Path) -> None:
    one, two = tiny_image_model(), tiny_image_model()
    model: Any = MultimodalData2Vec({"photo": one, "scan": two}, one.ema_teacher, one.optimization)
    for part, seen in ((one, IMAGENET), (two, OTHERS)):
        assert isinstance(part.encoder, ImageEncoder)
        part.encoder.normalization = seen
    checkpoint: dict[str, Any] = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "both.ckpt")
    assert load_backbone(tmp_path / "both.ckpt", modality="photo").encoder.normalization == IMAGENET
    assert load_backbone(tmp_path / "both.ckpt", modality="scan").encoder.normalization == OTHERS
    two.encoder.normalization = INCEPTION  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"both.ckpt was trained on pictures of mean \[0.1.*, this run has mean \[0.5"):
        take_over_normalization(model, torch.load(tmp_path / "both.ckpt")["hyper_parameters"], "both.ckpt")
