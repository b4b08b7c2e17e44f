"""The speech layout of transformers: letters by number with the blank first, older names, and how clips are normalised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Wav2Vec2Config

from d2v_lightning import AudioEncoder, Backbone, Transformer
from d2v_lightning.checkpoints.huggingface_audio import adjust, config, normalize, task, untrained
from d2v_lightning.support.errors import NotFoundError, UserError


def backbone(position_depth: int = 1, conv_norm: str = "group") -> Backbone:
    trunk = Transformer(
        16, 2, 2, norm="post", norm_eps=1e-5, final_norm=False, input_norm=True, qkv_bias="qkv", layer_scale=None,
        dropout=0.25, input_dropout=0.25, init="normal",
    )  # fmt: skip
    options: dict[str, Any] = {"conv_norm": conv_norm, "position_depth": position_depth, "position_width": 15}
    return Backbone(AudioEncoder(16, [(8, 10, 5)], position_groups=4, padding="released_1", **options), trunk)


def head(outputs: int) -> dict[str, torch.Tensor]:
    rows = torch.arange(outputs).float()
    return {"lm_head.weight": rows[:, None].repeat(1, 24), "lm_head.bias": rows}


def beside(folder: Path, letters: dict[str, Any], **files: Any) -> Path:
    for name, content in {"vocab": letters, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(("depth", "norm", "kind"), [(1, "group", "wav2vec2"), (5, "layer", "data2vec-audio")])
def test_a_configuration_describes_the_network_that_describes_it(depth: int, norm: str, kind: str) -> None:
    ours = backbone(depth, norm)
    made = config(ours)
    assert made.model_type == kind
    again = untrained(made, "there")
    assert again.transformer.config == ours.transformer.config
    assert {name: tuple(t.shape) for name, t in again.state_dict().items()} == {
        name: tuple(t.shape) for name, t in ours.state_dict().items()
    }


def test_networks_that_either_side_cannot_be_are_named() -> None:
    with pytest.raises(UserError, match="with several convolutions for positions it knows layer-normed features"):
        config(backbone(5, "group"))
    with pytest.raises(UserError, match="there: it has an adapter"):
        untrained(Wav2Vec2Config(add_adapter=True), "there")


def test_the_blank_comes_first_and_the_rows_of_the_head_with_it(tmp_path: Path) -> None:
    beside(tmp_path, {"A": 0, " ": 1, "B": 2, "<pad>": 3}, tokenizer_config={"word_delimiter_token": " "})
    made, weights = Wav2Vec2Config(pad_token_id=3, hidden_size=24), head(4)
    found = task(weights, made, tmp_path)
    assert found is not None
    assert found[1] == {"vocabulary": ["<blank>", "A", "|", "B"], "normalize": True, "sample_rate": 16_000}
    assert weights["lm_head.bias"].tolist() == weights["lm_head.weight"][:, 0].tolist() == [3.0, 0.0, 1.0, 2.0]
    assert task({}, made, tmp_path) is None


@pytest.mark.parametrize(
    ("letters", "message"),
    [
        ({"A": 0, "B": 0, "|": 1, "<pad>": 2}, "gives two letters the same number"),
        ({"A": 0, "B": 1, "<pad>": 2}, r"has no '\|', which stands between words"),
        ({"A": 0, "|": 1, "<pad>": 3}, "has no letter of number 2, but others after it"),
        ({"A": 0, "|": 1, "<pad>": 99}, "numbers 3 letters, the network has 4 outputs"),
        ({"A": -1, "|": 1}, "the token 'A' has the number -1"),
    ],
)
def test_letters_that_do_not_fit_are_refused(letters: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        task(head(4), Wav2Vec2Config(pad_token_id=0), beside(tmp_path, letters))


def test_letters_that_are_missing_and_a_blank_that_is_none_are_said(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no vocab\.json in .*: it says which letters its 4 outputs are"):
        task(head(4), Wav2Vec2Config(), tmp_path)
    beside(tmp_path, {"A": 0, "|": 1, "<pad>": 2})
    with pytest.raises(UserError, match="pad_token_id is 7, where the blank among its outputs is expected"):
        task(head(3), Wav2Vec2Config(pad_token_id=7), tmp_path)


def test_older_names_of_a_weight_normed_convolution_are_todays() -> None:
    key, weight = "encoder.pos_conv_embed.conv.", torch.zeros(1)
    found = adjust({f"{key}weight_g": weight, f"{key}weight_v": weight, f"{key}bias": weight}, backbone())
    assert list(found) == [
        f"{key}parametrizations.weight.original0", f"{key}parametrizations.weight.original1", f"{key}bias"
    ]  # fmt: skip


def test_how_clips_are_normalised_stands_in_either_of_two_files(tmp_path: Path) -> None:
    assert normalize(tmp_path) is None
    beside(tmp_path, {}, processor_config={"feature_extractor": {"do_normalize": True}})
    assert normalize(tmp_path) is True
    beside(tmp_path, {}, preprocessor_config={"do_normalize": False})
    assert normalize(tmp_path) is False
    beside(tmp_path, {}, preprocessor_config={"do_normalize": "no"})
    with pytest.raises(UserError, match="true or false is expected"):
        normalize(tmp_path)
