"""Options of 1.0 for speech and text: sizes are the weights', the method the options', and neither contradicts the other."""

from __future__ import annotations

from typing import Any

import pytest
from golden_case import GoldenCase

from d2v_lightning.checkpoints.official_v1_audio_text_options import (
    audio_backbone,
    audio_tree,
    text_backbone,
    text_tree,
)
from d2v_lightning.nn.encoders import AudioEncoder, TextEncoder
from d2v_lightning.support.errors import UserError
from d2v_lightning.support.tensor_files import Weights


def case(name: str, **changed: Any) -> tuple[Weights, dict[str, Any]]:
    golden = GoldenCase(name)
    return Weights(golden.group("model.")), {**golden.json["official_options_set"], **changed}


def test_a_speech_network_has_the_sizes_of_its_weights_whatever_is_left_unsaid() -> None:
    state, options = case("audio_unpadded")
    said = {"conv_feature_layers": options["conv_feature_layers"], "encoder_attention_heads": 4}
    for given in (options, said):
        backbone = audio_backbone(state, given, "file")
        assert isinstance(backbone.encoder, AudioEncoder)
        assert (backbone.dim, backbone.transformer.depth, backbone.encoder.conv_norm) == (48, 3, "layer")
        arguments = backbone.encoder.config["init_args"]
        assert (arguments["position_depth"], arguments["position_groups"]) == (5, 16)
        assert all(parameter.is_meta for parameter in backbone.parameters()), "it has no weights"
    pre = audio_backbone(*case("audio_variant_prenorm"), "file").transformer.config["init_args"]
    assert (pre["norm"], pre["final_norm"], pre["input_norm"]) == ("pre", True, False)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"encoder_layers": 4}, "its option encoder_layers is 4, its weights are those of 3"),
        ({"pos_conv_depth": 2}, "its option pos_conv_depth is 2, its weights are those of 5"),
        ({"extractor_mode": "default"}, "its option extractor_mode is 'default'"),
        (
            {"conv_feature_layers": "[(16, 10, 5)]"},
            r"file: its options say convolutions \[\(16, 10, 5\)\], its weights",
        ),
    ],
)
def test_speech_options_that_contradict_the_weights_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        audio_backbone(*case("audio_unpadded", **changed), "file")


def test_a_text_network_and_options_that_ours_does_not_have() -> None:
    state, options = case("text_unpadded_variant")
    backbone = text_backbone(state, options, "file")
    assert isinstance(backbone.encoder, TextEncoder)
    encoder = backbone.encoder
    assert (encoder.vocab_size, encoder.mask_id, encoder.pad_id, encoder.max_positions) == (120, 119, 1, 32)
    trunk = {**options["transformer"], "activation_fn": "relu"}
    with pytest.raises(UserError, match="its option activation_fn is 'relu', only 'gelu' is known"):
        text_backbone(state, {**options, "transformer": trunk}, "file")


def schedule(arguments: dict[str, Any]) -> tuple[Any, ...]:
    options = arguments["optimization"]["init_args"]
    return tuple(options[name] for name in ("lr", "schedule", "warmup", "final_lr"))


def test_the_method_is_what_the_options_say() -> None:
    state, options = case("audio_variant_prenorm")
    arguments = audio_tree(state, options, {"model": options}, "file")["init_args"]
    assert arguments["targets"]["init_args"]["norm_each"] == ["layer"]
    assert arguments["targets"]["init_args"]["norm_after"] == ["layer"]
    assert (arguments["loss"]["init_args"]["beta"], arguments["loss"]["init_args"]["scale"]) == (0.25, 0.7)
    assert arguments["teacher_scope"] == "context"
    teacher = arguments["ema_teacher"]["init_args"]
    assert (teacher["decay_start"], teacher["decay_end"], teacher["anneal_steps"]) == (0.9, 0.99, 10)
    # config/audio/pretraining/base_librispeech.yaml and config/text/pretraining/base.yaml
    assert schedule(arguments) == (5e-4, "tri_stage", 0.03, pytest.approx(5e-6))
    state, options = case("text_unpadded_variant")
    arguments = text_tree(state, options, {"model": options}, "file")["init_args"]
    assert (arguments["teacher_scope"], arguments["loss"]["init_args"]["scale"]) == ("backbone", "rsqrt_width")
    assert schedule(arguments) == (2e-4, "fairseq_cosine", 0.01, 0.0)
    with pytest.raises(UserError, match="its option head_layers is 2, its weights are those of 1"):
        text_tree(state, {**options, "head_layers": 2}, {}, "file")
