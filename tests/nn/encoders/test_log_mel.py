"""LogMelEncoder: the spectrum is a library's, padding does no harm, and a network with it is kept and never passed off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.audio_utils import spectrogram, window_function

from d2v_lightning import Backbone, Data2Vec, LogMelEncoder, SpeechCTC, Transformer
from d2v_lightning.checkpoints import official_state_dict, save_huggingface
from d2v_lightning.checkpoints.onnx import export_onnx
from d2v_lightning.nn.encoders.audio import feature_lengths
from d2v_lightning.nn.encoders.log_mel import mel_filters


def encoder() -> LogMelEncoder:
    torch.manual_seed(0)
    return LogMelEncoder(16, bands=20, position_depth=2, position_width=6, position_groups=4)


def backbone() -> Backbone:
    return Backbone(encoder(), Transformer(16, 2, 2, layer_scale=None)).eval()


def test_the_bands_are_those_of_a_library_centred_over_time() -> None:
    clip = torch.randn(8000, generator=torch.Generator().manual_seed(0))
    window = window_function(400, "hann", periodic=True)
    power = spectrogram(
        clip.numpy().astype(np.float64), window, 400, 320, fft_length=512, power=2.0, center=False,
        mel_filters=mel_filters(20).numpy().astype(np.float64), mel_floor=0.0,
    )  # fmt: skip
    expected = torch.from_numpy(np.log(power + 1e-3).T).float()
    expected = (expected - expected.mean(dim=0)) / 2.5
    torch.testing.assert_close(encoder().frames(clip[None], None)[0], expected, atol=1e-4, rtol=1e-4)


def test_frames_are_where_the_published_convolutions_have_them() -> None:
    for samples in (400, 719, 720, 16000, 250000):
        assert feature_lengths(samples, encoder().conv_layers) == feature_lengths(samples)
    with pytest.raises(ValueError, match="399 samples: the first frame needs 400"):
        encoder().features(torch.zeros(1, 399))
    with pytest.raises(ValueError, match="bands is 0"):
        LogMelEncoder(bands=0)
    with pytest.raises(ValueError, match="bands is 300: 43 of them are narrower"):
        LogMelEncoder(bands=300)


def test_a_clip_alone_and_padded_gives_the_same_features() -> None:
    network = backbone()
    clips = [torch.randn(samples) for samples in (4000, 401, 2600)]
    inputs = torch.stack([torch.nn.functional.pad(clip, (0, 4000 - len(clip)), value=3.0) for clip in clips])
    padding = torch.arange(4000) >= torch.tensor([len(clip) for clip in clips])[:, None]
    together = network.features(inputs, padding)
    for row, clip in enumerate(clips):
        for whole, single in zip(together.layers, network.features(clip[None]).layers, strict=True):
            torch.testing.assert_close(whole[row, : single.shape[1]], single[0], atol=1e-5, rtol=1e-5)


def test_half_precision_does_not_reach_the_spectrum() -> None:
    clip = torch.randn(1, 8000)
    exact = encoder().frames(clip, None)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder().frames(clip, None), exact)
    halved = encoder().bfloat16()
    assert halved.features(clip.bfloat16())[0].dtype == torch.bfloat16
    torch.testing.assert_close(halved.frames(clip.bfloat16(), None).float(), exact, atol=0.1, rtol=0.1)


def test_it_is_kept_and_is_none_of_metas(tmp_path: Path) -> None:
    network = backbone()
    clip = torch.randn(1, 4000)
    assert not any("waves" in name or "filters" in name for name in network.state_dict())
    SpeechCTC(network, vocabulary=["<blank>", "|", "A"]).save_pretrained(tmp_path / "ours")
    again = SpeechCTC(checkpoint=str(tmp_path / "ours"), vocabulary=["<blank>", "|", "A"]).eval()
    assert isinstance(again.encoder, LogMelEncoder)
    torch.testing.assert_close(again.backbone(clip), network(clip))
    with pytest.raises(ValueError, match="transformers has no such network: the encoder is LogMelEncoder"):
        save_huggingface(network, tmp_path / "theirs")
    model = Data2Vec.from_recipe("audio_hours_log_mel")
    with pytest.raises(ValueError, match="Meta's code has no such network: the encoder is LogMelEncoder"):
        official_state_dict(model)


def test_onnx(tmp_path: Path) -> None:
    import onnxruntime

    export_onnx(backbone(), tmp_path / "log_mel.onnx")
    clip = torch.randn(2, 5000)
    found = onnxruntime.InferenceSession(str(tmp_path / "log_mel.onnx")).run(None, {"inputs": clip.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found), backbone()(clip), atol=1e-4, rtol=1e-4)
