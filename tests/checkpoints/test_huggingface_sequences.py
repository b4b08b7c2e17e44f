"""Parity with tiny random speech and text models of the transformers library, both ways, padded and not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModel,
    Data2VecAudioConfig,
    Data2VecAudioForCTC,
    Data2VecAudioModel,
    Data2VecTextConfig,
    Data2VecTextForSequenceClassification,
    Data2VecTextModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaModel,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    Wav2Vec2Model,
)

from d2v_lightning import Alibi, AudioEncoder, Backbone, TextEncoder, Transformer, load_backbone
from d2v_lightning.checkpoints import save_huggingface
from d2v_lightning.support.errors import UserError

SAME = {"atol": 1e-5, "rtol": 1e-5}
SIZES = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 40}
AUDIO = {**SIZES, "conv_dim": (8, 8), "conv_kernel": (10, 3), "conv_stride": (5, 2), "num_conv_pos_embedding_groups": 4}
TEXT = {**SIZES, "vocab_size": 30, "max_position_embeddings": 20}
STABLE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
MODELS: dict[str, tuple[type[PreTrainedModel], Any]] = {
    "audio": (Data2VecAudioModel, Data2VecAudioConfig(**AUDIO)),
    "audio_ctc": (Data2VecAudioForCTC, Data2VecAudioConfig(**AUDIO, vocab_size=9)),
    "wav2vec2": (Wav2Vec2Model, Wav2Vec2Config(**AUDIO, num_conv_pos_embeddings=16)),
    "wav2vec2_odd": (Wav2Vec2Model, Wav2Vec2Config(**AUDIO, num_conv_pos_embeddings=9)),
    "wav2vec2_stable": (Wav2Vec2Model, Wav2Vec2Config(**AUDIO, num_conv_pos_embeddings=16, **STABLE)),
    "wav2vec2_ctc": (Wav2Vec2ForCTC, Wav2Vec2Config(**AUDIO, num_conv_pos_embeddings=16, vocab_size=9)),
    "text": (Data2VecTextModel, Data2VecTextConfig(**TEXT, type_vocab_size=1)),
    "text_two_types": (Data2VecTextModel, Data2VecTextConfig(**TEXT, layer_norm_eps=0.01)),
    "text_classifier": (Data2VecTextForSequenceClassification, Data2VecTextConfig(**TEXT)),
    "roberta": (RobertaModel, RobertaConfig(**TEXT)),
    "roberta_lm": (RobertaForMaskedLM, RobertaConfig(**TEXT)),
}


def theirs(name: str) -> PreTrainedModel:
    """A model of theirs with no parameter left at 0 or 1, where a mix-up would not show."""
    torch.manual_seed(0)
    model_class, config = MODELS[name]
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
        if name == "text":
            model.embeddings.token_type_embeddings.weight.zero_()
    return model


def batch(name: str, padded: bool) -> tuple[Tensor, Tensor | None]:
    """Inputs and their padding, True = padding."""
    generator = torch.Generator().manual_seed(1)
    if "audio" in name or "wav2vec2" in name:
        inputs, lengths = torch.randn(3, 900, generator=generator), torch.tensor([900, 700, 500])
    else:
        inputs, lengths = torch.randint(3, 30, (3, 12), generator=generator), torch.tensor([12, 9, 4])
    padding_mask = torch.arange(inputs.shape[1]) >= lengths[:, None]
    if not padded:
        return inputs, None
    return inputs.masked_fill(padding_mask, 1 if inputs.dtype == torch.int64 else 0), padding_mask


def assert_same_hidden_states(backbone: Backbone, model: PreTrainedModel, name: str, padded: bool) -> None:
    """Every block's output at every place that is not padding, and the last hidden state."""
    inputs, padding_mask = batch(name, padded)
    attention = None if padding_mask is None else (~padding_mask).long()
    network = getattr(model, model.base_model_prefix, model)
    with torch.no_grad():
        expected = network(inputs, attention_mask=attention, output_hidden_states=True)
        last = backbone.eval()(inputs, padding_mask)
    ours = backbone.features(inputs, padding_mask)
    inside = torch.ones(last.shape[:2], dtype=torch.bool) if ours.padding_mask is None else ~ours.padding_mask
    assert len(expected.hidden_states) == 1 + len(ours.layers)
    # The last of their hidden states is after the final norm, where there is one.
    for block, their_block in zip(ours.layers[:-1], expected.hidden_states[1:-1], strict=True):
        torch.testing.assert_close(block[inside], their_block[inside], **SAME)
    torch.testing.assert_close(last[inside], expected.last_hidden_state[inside], **SAME)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_hidden_states_are_theirs_and_come_back(name: str, padded: bool, tmp_path: Path) -> None:
    model = theirs(name)
    model.save_pretrained(tmp_path / "theirs")
    backbone = load_backbone(tmp_path / "theirs")
    assert_same_hidden_states(backbone, model, name, padded)
    save_huggingface(backbone, tmp_path / "ours")
    again, report = AutoModel.from_pretrained(
        tmp_path / "ours", output_loading_info=True, **({} if "text" not in name else {"add_pooling_layer": False})
    )
    unused = {key for key in report["missing_keys"] if "masked_spec_embed" not in key and "pooler" not in key}
    assert not unused, unused
    assert not report["unexpected_keys"]
    assert_same_hidden_states(backbone, again.eval(), name, padded)
    once_more = load_backbone(tmp_path / "ours")
    assert once_more.encoder.config == backbone.encoder.config
    for key, tensor in backbone.state_dict().items():
        assert torch.equal(once_more.state_dict()[key], tensor), key


@pytest.mark.parametrize("name", ["audio", "wav2vec2"])
def test_a_norm_that_ours_does_not_have_is_refused(name: str, tmp_path: Path) -> None:
    model = theirs(name)
    model.config.layer_norm_eps = 0.1
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"layer_norm_eps is 0.1, ours has 1e-05 only"):
        load_backbone(tmp_path)


def test_networks_that_theirs_cannot_be(tmp_path: Path) -> None:
    post = {"norm": "post", "final_norm": False, "qkv_bias": "qkv", "layer_scale": None, "norm_eps": 1e-5}
    large_eps = Transformer(16, 1, 2, input_norm=True, **{**post, "norm_eps": 0.1})
    alibi = Transformer(16, 1, 2, input_norm=True, position_bias=Alibi(2), **post)
    audio, other = (Backbone(AudioEncoder(16, [(8, 10, 5)], position_groups=4), trunk) for trunk in (alibi, large_eps))
    text = Backbone(TextEncoder(16, 30, 18, mask_id=29), Transformer(16, 1, 2, **{**post, "norm": "pre"}))
    for backbone, message in ((audio, "position_bias is"), (other, "norm_eps is 0.1"), (text, "norm is 'pre'")):
        with pytest.raises(ValueError, match=f"transformers has no such network: {message}"):
            save_huggingface(backbone, tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()
