"""Parity with tiny random models of the transformers library, read from and written to its own files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_case import GoldenCase
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    BeitModel,
    Data2VecVisionConfig,
    Data2VecVisionForImageClassification,
    Data2VecVisionModel,
    PreTrainedModel,
    ViTConfig,
    ViTModel,
)

from d2v_lightning import Backbone, ImageEncoder, RelativePositionBias, Transformer, load_backbone
from d2v_lightning.checkpoints import huggingface_state_dict, save_huggingface
from d2v_lightning.checkpoints.pretrained import FromPretrained
from d2v_lightning.nn.position import relative_position_index
from d2v_lightning.support.errors import UserError

SAME = {"atol": 1e-5, "rtol": 1e-5}
SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 56,
    "image_size": 20,
    "patch_size": 4,
}
# What their models can be made of; "export" is False where only theirs -> ours exists.
VARIANTS: dict[str, dict[str, Any]] = {
    "shared_bias": {"use_shared_relative_position_bias": True, "layer_scale_init_value": 1e-4},
    "bias_per_block": {"use_relative_position_bias": True},
    "learned_positions": {"use_absolute_position_embeddings": True},
    "bias_and_learned_positions": {"use_absolute_position_embeddings": True, "use_relative_position_bias": True},
    "no_positions": {},
    "no_layer_scale": {"use_shared_relative_position_bias": True, "layer_scale_init_value": 0.0},
    "final_norm": {"use_shared_relative_position_bias": True, "use_mean_pooling": False, "layer_norm_eps": 1e-6},
    "large_eps": {"use_mean_pooling": False, "layer_norm_eps": 0.1},
    "patch_of_5": {"use_shared_relative_position_bias": True, "patch_size": 5, "num_channels": 1},
    "mask_token": {"use_shared_relative_position_bias": True, "use_mask_token": True},
    "wide_image": {"image_size": (12, 28)},
    "wide_patch": {"image_size": (12, 30), "patch_size": (4, 6)},
}
NOT_SQUARE = {"image_size": (12, 28), "use_shared_relative_position_bias": True}


def theirs(model_class: type[PreTrainedModel], options: dict[str, Any]) -> PreTrainedModel:
    """A model of theirs with no parameter left at 0 or 1, where a mix-up would not show."""
    torch.manual_seed(0)
    config_class = BeitConfig if model_class.__name__.startswith("Beit") else Data2VecVisionConfig
    model = model_class(config_class(**{**SIZES, **options})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def images(config: Any) -> Tensor:
    size = config.image_size if not isinstance(config.image_size, int) else (config.image_size, config.image_size)
    return torch.randn(2, config.num_channels, *size, generator=torch.Generator().manual_seed(1))


def network(model: PreTrainedModel) -> PreTrainedModel:
    """The model without its head."""
    return getattr(model, model.base_model_prefix, model)


def assert_same_hidden_states(backbone: Backbone, model: PreTrainedModel) -> None:
    """Every block's output and the last hidden state."""
    inputs = images(model.config)
    with torch.no_grad():
        expected = network(model)(inputs, output_hidden_states=True)
    ours = backbone.features(inputs)
    blocks = [torch.cat(pair, dim=1) for pair in zip(ours.extra, ours.layers, strict=True)]
    assert len(expected.hidden_states) == 1 + len(blocks)
    for block, their_block in zip(blocks, expected.hidden_states[1:], strict=True):
        torch.testing.assert_close(block, their_block, **SAME)
    with torch.no_grad():
        torch.testing.assert_close(backbone.eval()(inputs), expected.last_hidden_state, **SAME)


@pytest.mark.parametrize("variant", VARIANTS)
def test_hidden_states_are_theirs_and_come_back(variant: str, tmp_path: Path) -> None:
    model = theirs(Data2VecVisionModel, VARIANTS[variant])
    model.save_pretrained(tmp_path / "theirs")
    backbone = load_backbone(tmp_path / "theirs")
    assert_same_hidden_states(backbone, model)

    save_huggingface(backbone, tmp_path / "ours")
    again, report = Data2VecVisionModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    assert_same_hidden_states(backbone, again.eval())
    written = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("mask_token")}
    assert written.keys() == again.state_dict().keys()
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, written[name]), name


@pytest.mark.parametrize("model_class", [Data2VecVisionForImageClassification, BeitModel, BeitForImageClassification])
@pytest.mark.parametrize("variant", ["shared_bias", "bias_per_block", "final_norm"])
def test_models_with_a_head_and_beit(model_class: type[PreTrainedModel], variant: str, tmp_path: Path) -> None:
    model = theirs(model_class, VARIANTS[variant])
    model.save_pretrained(tmp_path)
    assert_same_hidden_states(load_backbone(tmp_path), model)


def test_bias_of_images_that_are_not_square_is_the_one_they_apply(tmp_path: Path) -> None:
    """Their code reads such a table transposed and resizes it: what was trained is what that computes."""
    model = theirs(Data2VecVisionModel, NOT_SQUARE)
    model.save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path)
    assert_same_hidden_states(backbone, model)
    with pytest.raises(ValueError, match="needs square images"):
        huggingface_state_dict(backbone)


def test_the_table_of_an_only_block_goes_out_as_a_shared_one(tmp_path: Path) -> None:
    model = theirs(Data2VecVisionModel, {"num_hidden_layers": 1, "use_relative_position_bias": True})
    model.save_pretrained(tmp_path / "theirs")
    backbone = load_backbone(tmp_path / "theirs")
    assert_same_hidden_states(backbone, model)
    save_huggingface(backbone, tmp_path / "ours")
    again = Data2VecVisionModel.from_pretrained(tmp_path / "ours").eval()
    assert again.config.use_shared_relative_position_bias
    assert_same_hidden_states(backbone, again)


def test_offsets_stand_in_the_same_rows(tmp_path: Path) -> None:
    """Each row of the table, class token's three included, biases the same pairs of tokens in both."""
    model = theirs(Data2VecVisionModel, VARIANTS["shared_bias"])
    table = model.encoder.relative_position_bias.relative_position_bias_table
    with torch.no_grad():
        table.copy_(torch.arange(table.numel()).reshape(table.shape))
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model.encoder.relative_position_bias((5, 5))
    position_bias = load_backbone(tmp_path).transformer.position_bias
    assert position_bias is not None
    assert torch.equal(position_bias(26)[0], expected)


def test_training_settings_travel(tmp_path: Path) -> None:
    settings = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.2, "drop_path_rate": 0.3}
    theirs(Data2VecVisionModel, settings).save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path)
    blocks = backbone.transformer.blocks
    assert [block.drop_path.probability for block in blocks] == pytest.approx([0.0, 0.15, 0.3])
    assert [block.dropout.p for block in blocks] == [0.1] * 3
    assert [block.attn.attention_dropout for block in blocks] == [0.2] * 3
    save_huggingface(backbone, tmp_path / "ours")
    config = Data2VecVisionConfig.from_pretrained(tmp_path / "ours")
    assert {name: getattr(config, name) for name in settings} == settings


@pytest.mark.parametrize("case", ["vision_shared_relpos", "vision_perlayer_relpos"])
def test_an_official_model_reaches_transformers(case: str, tmp_path: Path) -> None:
    """Meta's file -> ours -> theirs: the last hidden state is the normed output of the last block."""
    golden = GoldenCase(case)
    backbone = FromPretrained.from_pretrained(golden.write_official_file(tmp_path)).backbone
    save_huggingface(backbone, tmp_path / "theirs")
    model = Data2VecVisionModel.from_pretrained(tmp_path / "theirs").eval()
    inputs = golden.batch()["inputs"]
    with torch.no_grad():
        torch.testing.assert_close(model(inputs).last_hidden_state, backbone.eval()(inputs), **SAME)


def test_older_file_without_safetensors(tmp_path: Path) -> None:
    model = theirs(Data2VecVisionModel, VARIANTS["shared_bias"])
    model.save_pretrained(tmp_path)
    index = relative_position_index((5, 5))  # older versions of the library stored this derived buffer
    older = {**model.state_dict(), "encoder.relative_position_bias.relative_position_index": index}
    torch.save(older, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert_same_hidden_states(load_backbone(tmp_path), model)
    index[3, 4] = 0
    torch.save(older, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"relative_position_index' is not what follows from config.json"):
        load_backbone(tmp_path)


def test_older_file_that_names_code_runs_nothing(tmp_path: Path) -> None:
    theirs(Data2VecVisionModel, {}).save_pretrained(tmp_path)
    torch.save({"weights": _TouchesAFile(tmp_path / "touched")}, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds more than tensors"):
        load_backbone(tmp_path)
    assert not (tmp_path / "touched").exists()


class _TouchesAFile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def rewrite(folder: Path, name: str, tensor: Tensor | None) -> None:
    """Put a tensor into the stored weights, or take one out."""
    state = load_file(folder / "model.safetensors")
    state.pop(name, None)
    if tensor is not None:
        state[name] = tensor
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("encoder.layer.1.attention.attention.key.weight", None, "missing ['encoder.layer.1.attention.attention.key"),
        ("encoder.layer.1.attention.attention.key.bias", torch.zeros(24), "not expected ['encoder.layer.1.attention"),
        ("encoder.layer.7.lambda_1", torch.zeros(24), "not expected ['encoder.layer.7.lambda_1']"),
        (
            "encoder.layer.0.attention.attention.relative_position_bias.relative_position_bias_table",
            torch.zeros(84, 3),
            "not ex",
        ),
        ("something.weight", torch.zeros(2), "not expected ['something.weight']"),
        ("encoder.layer.0.output.dense.weight", torch.zeros(24, 60), "shape (24, 60)"),
        ("encoder.layer.0.output.dense.bias", torch.full((24,), float("nan")), "NaN or infinity"),
    ],
)
def test_a_file_that_does_not_fit_says_why(name: str, tensor: Tensor | None, message: str, tmp_path: Path) -> None:
    theirs(Data2VecVisionModel, VARIANTS["shared_bias"]).save_pretrained(tmp_path)
    rewrite(tmp_path, name, tensor)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_backbone(tmp_path)
    assert "\n" not in str(error.value)


def test_a_weight_beside_the_network_that_is_no_head(tmp_path: Path) -> None:
    theirs(Data2VecVisionForImageClassification, {}).save_pretrained(tmp_path)
    rewrite(tmp_path, "something.weight", torch.zeros(2))
    with pytest.raises(ValueError, match=r"'something.weight' is not part of this model"):
        load_backbone(tmp_path)
    rewrite(tmp_path, "something.weight", None)
    rewrite(tmp_path, "data2vec_vision.encoder.relative_position_bias.relative_position_bias_table", torch.zeros(84, 3))
    with pytest.raises(ValueError, match=r"not expected \['encoder.relative_position_bias"):  # of a model without any
        load_backbone(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"use_relative_position_bias": True, "use_shared_relative_position_bias": True}, "our trunk has either"),
    ],
)
def test_a_network_that_ours_cannot_be(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    theirs(Data2VecVisionModel, options).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_backbone(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("id2label", ["cat", "dog"], "'list' object has no attribute|Field 'id2label' with value"),
        ("hidden_dropout_prob", 2.0, "dropout 2.0: it is a probability"),
        ("hidden_size", "wide", "hidden_size is 'wide'"),
        ("num_attention_heads", -1, "num_attention_heads is -1, where 1 or more is expected"),
        ("intermediate_size", 0, "intermediate_size is 0, where 1 or more is expected"),
        ("num_hidden_layers", 2.5, "num_hidden_layers is 2.5"),
    ],
)
def test_a_configuration_of_nonsense_is_one_line(name: str, value: object, message: str, tmp_path: Path) -> None:
    theirs(Data2VecVisionModel, {}).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(ValueError, match=message) as error:
        load_backbone(tmp_path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_another_type_of_model_is_named(tmp_path: Path) -> None:
    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=16)
    ViTModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model of type 'vit': supported are data2vec-vision, beit") as error:
        load_backbone(tmp_path)
    assert "\n" not in str(error.value)


def test_a_configuration_that_names_code_runs_nothing(tmp_path: Path) -> None:
    model = theirs(Data2VecVisionModel, {})
    model.save_pretrained(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'touched')!r}, 'w')\nclass Config: pass\n")
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModel": "evil.Config"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_same_hidden_states(load_backbone(tmp_path), model)
    assert not (tmp_path / "touched").exists()


def test_files_that_are_not_there_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint at /nowhere/at/all"):
        load_backbone("/nowhere/at/all")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_backbone(tmp_path)
    theirs(Data2VecVisionModel, {}).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match="damaged or no safetensors"):
        load_backbone(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no weights in"):
        load_backbone(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load_backbone(tmp_path)


def test_heads_that_are_left_out_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("d2v_lightning.checkpoints.backbones.rank_zero_info", said.append)
    theirs(Data2VecVisionForImageClassification, {}).save_pretrained(tmp_path)
    load_backbone(tmp_path)
    assert len(said) == 1
    pooler = "data2vec_vision.pooler.layernorm"
    assert said[0].endswith(f": classifier.bias, classifier.weight, {pooler}.bias, {pooler}.weight")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "post"}, "norm is 'post'"),
        ({"qkv_bias": "qkv"}, "qkv_bias is 'qkv'"),
        ({"layer_drop": 0.1}, "layer_drop is 0.1"),
        ({"layer_scale": 0.0}, "LayerScale with a positive start"),
    ],
)
def test_a_network_that_theirs_cannot_be(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    transformer = Transformer(dim=8, depth=1, num_heads=2, **options)
    backbone = Backbone(ImageEncoder(image_size=8, patch_size=4, dim=8), transformer)
    with pytest.raises(ValueError, match=message):
        save_huggingface(backbone, tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()


def test_what_was_written_is_what_is_read(tmp_path: Path) -> None:
    """Ours -> file -> ours: equal weights and an equal constructor tree."""
    torch.manual_seed(0)
    transformer = Transformer(dim=8, depth=2, num_heads=2, drop_path=0.1, position_bias=RelativePositionBias((2, 2), 2))
    backbone = Backbone(ImageEncoder(image_size=8, patch_size=4, dim=8), transformer)
    save_huggingface(backbone, tmp_path)
    again = load_backbone(tmp_path)
    assert again.transformer.config == backbone.transformer.config
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, backbone.state_dict()[name]), name
