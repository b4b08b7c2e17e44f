"""Configurable: arguments that nothing can be made of, and trees that are built again, of classes of ours alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import image_batch, tiny_image_model

from d2v_lightning import (
    Alibi,
    AudioEncoder,
    Backbone,
    Configurable,
    ConvDecoder,
    EMATeacher,
    ImageEncoder,
    LinearDecoder,
    MaskTokenStudent,
    MultimodalData2Vec,
    Optimization,
    RegressionLoss,
    RelativePositionBias,
    TextEncoder,
    Transformer,
)
from d2v_lightning.configurable import build, own_package
from d2v_lightning.recipes import from_recipe
from d2v_lightning.support.errors import UserError


@pytest.mark.parametrize(
    ("kind", "arguments", "said"),
    [
        (Transformer, {"dim": None}, "dim is None: Transformer needs a whole number"),
        (Transformer, {"depth": 1.5}, "depth is 1.5: Transformer needs a whole number"),
        (Transformer, {"dropout": -1.0}, "dropout -1.0: it is a probability"),
        (Transformer, {"dim": 16, "num_heads": 2, "mlp_ratio": -1.0}, "mlp_ratio is -1.0"),
        (Transformer, {"layer_scale": "x"}, "layer_scale is 'x': Transformer needs a number"),
        (RegressionLoss, {"scale": None}, "scale is None: RegressionLoss needs a value"),
        (Optimization, {"betas": [0.9, float("nan")]}, r"betas is \[0.9, nan\]: Optimization needs finite numbers"),
        (
            ImageEncoder,
            {"image_size": [32]},
            r"image_size is \[32\]: ImageEncoder needs a whole number or two whole numbers",
        ),
        (ImageEncoder, {"in_channels": -1}, "in_channels -1: permitted is 1 or more"),
        (AudioEncoder, {"dim": -16}, "dim -16: permitted is 1 or more"),
        (AudioEncoder, {"position_groups": 0}, "position_groups 0"),
        (TextEncoder, {"dim": 0}, "dim 0: permitted is 1 or more"),
        (LinearDecoder, {"dim": True}, "dim is True: LinearDecoder needs a whole number"),
        (ConvDecoder, {"grid": (4, 0)}, "grid 0: permitted is 1 or more"),
        (RelativePositionBias, {"num_heads": -1}, "num_heads -1: permitted is 1 or more"),
        (Alibi, {"num_heads": 0}, "num_heads 0: permitted is 1 or more"),
    ],
)
def test_what_no_network_can_be_made_of(kind: type, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        kind(**arguments)


def test_a_whole_number_is_a_number() -> None:
    transformer = Transformer(dim=8, depth=1, num_heads=1, layer_scale=1)
    assert transformer.get_parameter("blocks.0.scale1.gamma").tolist() == [1.0] * 8


def test_a_recorded_tree_builds_the_same_module() -> None:
    model = tiny_image_model()
    again = build(model.config)
    again.load_state_dict(model.state_dict())
    batch = image_batch(2, 9)
    assert torch.equal(model.training_step(batch, 0), again.training_step(batch, 0))
    assert isinstance(from_recipe("digits", "model").backbone, Backbone)


@pytest.mark.parametrize(
    "class_path",
    ["os.system", "torch.nn.Linear", "Linear", "d2v_lightning.pretrain.data2vec.torch", "d2v_lightning.no.Such"],
)
def test_only_classes_of_this_project_are_built(class_path: str) -> None:
    with pytest.raises(ValueError, match="is not a class of d2v_lightning"):
        build({"class_path": class_path, "init_args": {"in_features": 1, "out_features": 1}})


def test_an_argument_that_no_checkpoint_can_hold_is_named() -> None:
    with pytest.raises(
        UserError, match="Optimization's argument schedule is of type method, which no checkpoint can hold"
    ):
        Optimization(schedule=tiny_image_model().forward)  # type: ignore[arg-type]


class Outer:
    """Holds a class."""

    class Inner(Alibi):
        """Out of sight of files."""


def test_a_class_inside_another_is_not_found_and_what_to_do_is_said() -> None:
    with pytest.raises(UserError, match=r"Outer.Inner' is defined inside a class or function.*move Inner to the top"):
        build(Outer.Inner(8).config)


def test_a_folder_without_init_that_stands_in_place_of_ours_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "datamodules").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "datamodules")
    with pytest.raises(UserError, match=f"{tmp_path / 'datamodules'} hides the package datamodules"):
        own_package("datamodules")


class Decoder(Configurable, torch.nn.Module):
    """A part of the user's that does what a decoder does, without being one of ours."""

    dim = 48


class Names(MaskTokenStudent):
    """A subclass that hands its arguments on."""

    def __init__(self, loss: str = "red", **inherited: Any) -> None:
        super().__init__(**inherited)


def test_a_part_in_a_wrong_place_is_refused_and_one_of_the_users_may_stand_in() -> None:
    backbone, decoder = tiny_image_model().backbone, Decoder()
    for student in (MaskTokenStudent, Names):
        with pytest.raises(UserError, match=f"decoder is None: {student.__name__} needs LinearDecoder or MlpDecoder"):
            student(backbone=backbone, decoder=None)
        with pytest.raises(UserError, match=f"backbone is a LinearDecoder: {student.__name__} needs Backbone"):
            student(backbone=LinearDecoder(8), decoder=decoder)
        assert student(backbone=backbone, decoder=decoder).decoder is decoder  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"modalities.image is a RegressionLoss: MultimodalData2Vec needs Objective"):
        MultimodalData2Vec({"image": RegressionLoss()}, EMATeacher(), Optimization())  # type: ignore[dict-item]
