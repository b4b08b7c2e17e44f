"""Speech: lengths, and that padding does no harm."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from d2v_lightning import (
    AudioEncoder,
    Backbone,
    Data2Vec,
    EMATeacher,
    LinearDecoder,
    MaskTokenStudent,
    Optimization,
    RegressionLoss,
    Targets,
    Transformer,
)
from d2v_lightning.nn.encoders.audio import CONV_LAYERS, feature_lengths, shortest_input

CONVS = [(8, 10, 5), (8, 3, 2), (8, 2, 2)]


def audio_model(
    conv_norm: Literal["layer", "group"] = "layer",
    depth: int = 3,
    norm: Literal["pre", "post"] = "post",
    padding: Literal["exact", "released_1", "released_2"] = "exact",
) -> Data2Vec:
    torch.manual_seed(0)
    encoder = AudioEncoder(
        16, CONVS, conv_norm, position_depth=depth, position_width=9, position_groups=4, padding=padding
    )
    trunk = Transformer(
        16, 2, 2, norm=norm, norm_eps=1e-5, final_norm=norm == "pre", input_norm=norm == "post", qkv_bias="qkv",
        layer_scale=None, init="normal",
    )  # fmt: skip
    return Data2Vec(
        student=MaskTokenStudent(Backbone(encoder, trunk), LinearDecoder(16, "default"), "uniform"),
        targets=Targets(2, "ffn", ["instance"], []),
        loss=RegressionLoss(0.0, "sum", "rsqrt_width"),
        ema_teacher=EMATeacher(0.9, 0.99, 10, 1),
        optimization=Optimization(),
        teacher_scope="transformer",
    )


def padded(clips: list[Tensor]) -> dict[str, Tensor]:
    longest = max(map(len, clips))
    inputs = torch.stack([torch.nn.functional.pad(clip, (0, longest - len(clip)), value=3.0) for clip in clips])
    lengths = torch.tensor([len(clip) for clip in clips])
    return {"inputs": inputs, "padding_mask": torch.arange(longest) >= lengths[:, None]}


@pytest.mark.parametrize("samples", [400, 719, 720, 16000, 250000, 399, 12])
def test_feature_lengths_count_what_the_convolutions_make(samples: int) -> None:
    x = torch.zeros(1, 1, samples)
    for _, kernel, stride in CONV_LAYERS:
        x = x.unfold(2, kernel, stride)[..., 0] if x.shape[2] >= kernel else x[..., :0]
    assert feature_lengths(samples) == x.shape[2]
    assert feature_lengths(torch.tensor([samples])).tolist() == [x.shape[2]]


def test_the_shortest_input_of_a_frame_is_just_enough() -> None:
    assert shortest_input(1) == 400
    for frames in (1, 2, 50, 999):
        assert feature_lengths(shortest_input(frames)) == frames
        assert feature_lengths(shortest_input(frames) - 1) == frames - 1


@pytest.mark.parametrize(
    ("conv_norm", "depth", "norm"), [("layer", 3, "post"), ("group", 3, "pre"), ("group", 1, "post")]
)
def test_a_clip_alone_and_padded_gives_the_same_features_targets_and_predictions(
    conv_norm: Literal["layer", "group"], depth: int, norm: Literal["pre", "post"]
) -> None:
    model = audio_model(conv_norm, depth, norm).eval()
    generator = torch.Generator().manual_seed(1)
    clips = [torch.randn(length, generator=generator) for length in (900, 641, 1500)]
    batch = padded(clips)
    frames = feature_lengths(torch.tensor([900, 641, 1500]), CONVS)
    mask = torch.rand(3, 1, int(frames.max()), generator=generator) < 0.5
    whole_features = model.backbone.features(batch["inputs"], batch["padding_mask"])
    whole_targets = model.targets({**batch, "mask": mask})
    predictions, hidden = model.predictions({**batch, "mask": mask})
    assert torch.equal(whole_features.lengths, frames)
    rows = hidden // int(frames.max())
    for row, clip in enumerate(clips):
        count = int(frames[row])
        alone = {"inputs": clip[None], "mask": mask[row : row + 1, :, :count]}
        for whole, single in zip(whole_features.layers, model.backbone.features(clip[None]).layers, strict=True):
            torch.testing.assert_close(whole[row, :count], single[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(whole_targets[row, :count], model.targets(alone)[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(predictions[rows == row], model.predictions(alone)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("padding", ["released_1", "released_2"])
def test_official_padding_leaks_as_in_the_released_code(padding: Literal["released_1", "released_2"]) -> None:
    model = audio_model("group", padding=padding).eval()
    clips = [torch.randn(900), torch.randn(1500)]
    batch = padded(clips)
    count = feature_lengths(900, CONVS)
    alone = model.backbone.features(clips[0][None]).layers[-1][0]
    assert not torch.allclose(model.backbone.features(**batch).layers[-1][0, :count], alone, atol=1e-3)


def test_no_gradient_and_a_scaled_gradient_reach_the_convolutions() -> None:
    clip = torch.randn(2, 900)
    whole, gradients = audio_model().encoder, {}
    for factor in (1.0, 0.1, 0.0):
        encoder = AudioEncoder(16, CONVS, position_groups=4, feature_grad_mult=factor)
        encoder.load_state_dict(AudioEncoder(16, CONVS, position_groups=4).state_dict() | {
            name: tensor for name, tensor in whole.state_dict().items() if not name.startswith("position")
        })  # fmt: skip
        encoder.features(clip)[0].sum().backward()
        gradients[factor] = encoder.get_parameter("convs.0.weight").grad
    assert gradients[0.0] is None
    assert gradients[1.0] is not None
    torch.testing.assert_close(gradients[0.1], 0.1 * gradients[1.0])


def test_wrong_waveforms_are_refused_with_what_is_needed() -> None:
    encoder = AudioEncoder(16, CONVS, position_groups=4)
    with pytest.raises(ValueError, match=r"waveforms are \(1, 1, 900\): \(B, S\)"):
        encoder.features(torch.zeros(1, 1, 900))
    with pytest.raises(ValueError, match="have 20 samples: the first frame needs 30"):
        encoder.features(torch.zeros(1, 20))
    with pytest.raises(ValueError, match="conv_norm is 'batch'"):
        AudioEncoder(conv_norm="batch")  # type: ignore[arg-type]
