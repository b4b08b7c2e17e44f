"""Options of 2.0: sizes are the weights', the method the options', and neither contradicts the other."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from golden_case import GoldenCase

from d2v_lightning.checkpoints.official_v2_options import backbone_of, grid_of, refuse_borrowing, tree_of
from d2v_lightning.nn.encoders import AudioEncoder, ImageEncoder
from d2v_lightning.nn.position import Alibi, sine_cosine_positions
from d2v_lightning.support.errors import UserError
from d2v_lightning.support.tensor_files import Weights

CASES = {"IMAGE": "d2v2_image", "AUDIO": "d2v2_audio_alibi_padded"}


def case(modality: str, own: dict[str, Any] | None = None, **changed: Any) -> tuple[Weights, str, dict[str, Any]]:
    golden = GoldenCase(CASES[modality])
    options = {**copy.deepcopy(golden.json["official_options_set"]), **changed}
    options["modalities"][modality.lower()] |= own or {}
    return Weights(golden.group("model.")), modality, options


@pytest.mark.parametrize("grid", [(3, 3), (2, 4), (4, 2), (1, 6)])
def test_a_grid_is_read_off_its_sines_and_cosines(grid: tuple[int, int]) -> None:
    table = sine_cosine_positions(grid, 16).reshape(1, -1, 16)
    for kind in (torch.float32, torch.float16, torch.bfloat16):
        assert grid_of(table.to(kind), "table") == grid
    for other in (table + 0.1, table[0], table[:, :, :6]):
        with pytest.raises(UserError, match=r"weight 'table' of shape .* are not the sines and cosines of any grid"):
            grid_of(other, "table")


def test_a_network_has_the_sizes_of_its_weights() -> None:
    images = backbone_of(*case("IMAGE"), "file")
    assert isinstance(images.encoder, ImageEncoder)
    assert (images.encoder.grid, images.encoder.patch_size, images.dim) == ((5, 5), (8, 8), 48)
    assert images.transformer.config["init_args"]["prenet_depth"] == 2
    assert images.transformer.depth == 4
    sound = backbone_of(*case("AUDIO"), "file")
    assert isinstance(sound.encoder, AudioEncoder)
    assert isinstance(sound.transformer.position_bias, Alibi)
    assert sound.encoder.config["init_args"]["position_width"] == 95
    assert all(parameter.is_meta for parameter in sound.parameters()), "it has no weights"


@pytest.mark.parametrize(
    ("modality", "own", "changed", "message"),
    [
        ("IMAGE", {}, {"depth": 9}, "its option depth is 9, its weights are those of 2"),
        ("IMAGE", {"prenet_depth": 1}, {}, "its option prenet_depth is 1, its weights are those of 2"),
        ("IMAGE", {"patch_size": 16}, {}, "its option patch_size is 16, its weights are those of 8"),
        ("IMAGE", {"input_size": 48}, {}, "its option input_size is 48, its weights are those of 40"),
        ("IMAGE", {}, {"supported_modality": "Modality.TEXT"}, "supported_modality is 'Modality.TEXT'"),
        ("IMAGE", {}, {"layer_norm_first": True}, "file is pre-norm"),
        ("IMAGE", {}, {"norm_affine": False}, "its option norm_affine is False, only True is known"),
        ("AUDIO", {"learned_alibi_scale_per_head": False}, {}, "its option learned_alibi_scale_per_head is False"),
        ("AUDIO", {"use_alibi_encoder": False}, {}, "use_alibi_encoder contradicts its weights"),
        ("AUDIO", {"conv_pos_depth": 4}, {}, "its option conv_pos_depth is 4, its weights are those of 5"),
        ("AUDIO", {"conv_pos_pre_ln": True}, {}, "conv_pos_pre_ln is set, which no released model has"),
    ],
)
def test_options_that_contradict_the_weights_are_refused(
    modality: str, own: dict[str, Any], changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        backbone_of(*case(modality, own, **changed), "file")


def test_dropouts_are_those_of_the_options_and_their_defaults() -> None:
    """`Data2VecMultiConfig` (data2vec2.py) and `D2vAudioConfig`: .1 after attention and FFN, .1 on attention, none inside."""
    state, modality, options = case("AUDIO")
    for name in ("encoder_dropout", "post_mlp_drop", "attention_dropout", "activation_dropout"):
        del options[name]
    del options["modalities"]["audio"]["prenet_dropout"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = backbone_of(state, modality, options, "file").transformer.config["init_args"]
    names = ("dropout", "attention_dropout", "activation_dropout", "input_dropout")
    assert [found[name] for name in names] == [0.1, 0.1, 0.0, 0.0]
    assert found["activation_dropout_twice"] is True
    with pytest.warns(UserWarning, match=r"encoder_dropout 0.2 and post_mlp_drop 0.1 differ"):
        backbone_of(state, modality, {**options, "encoder_dropout": 0.2}, "file")


def test_the_method_is_what_the_options_say() -> None:
    state, modality, options = case("IMAGE")
    arguments = tree_of(state, modality, options, {"model": options}, "file")["init_args"]
    assert arguments["class_loss"] == 0.01
    optimization = arguments["optimization"]["init_args"]
    assert (optimization["weight_decay"], optimization["decay_all"]) == (0.05, True)
    assert (optimization["schedule"], optimization["final_lr"]) == ("fairseq_cosine", 0.0)
    assert arguments["teacher_scope"] == "backbone"
    assert arguments["targets"]["init_args"]["norm_after"] == ["layer"]
    decoder = arguments["student"]["init_args"]["decoder"]["init_args"]
    assert (decoder["depth"], decoder["width"], decoder["kernel"], decoder["groups"]) == (2, 32, 3, 4)
    state, modality, options = case("AUDIO")
    arguments = tree_of(state, modality, options, {"model": options}, "file")["init_args"]
    assert arguments["teacher_scope"] == "context"


def test_a_teacher_that_shares_more_with_its_student_is_refused() -> None:
    for modality in CASES:
        weights, _, options = case(modality, ema_encoder_only=True)
        backbone = backbone_of(weights, modality, options, "file")
        with pytest.raises(UserError, match="its option ema_encoder_only is true: such a teacher shares prenet"):
            refuse_borrowing(backbone, modality, options)
    weights, options = (
        Weights((text := GoldenCase("d2v2_text_padded")).group("model.")),
        text.json["official_options_set"],
    )
    backbone = backbone_of(weights, "TEXT", options, "file")
    refuse_borrowing(backbone, "TEXT", options)
    with pytest.raises(UserError, match="such a teacher of text shares its positions"):
        refuse_borrowing(backbone, "TEXT", {**options, "ema_encoder_only": False})
