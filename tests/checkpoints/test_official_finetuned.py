"""Fine-tuned files in Meta's layouts give the logits that their weights mean; what contradicts itself is refused."""

from __future__ import annotations

import argparse
import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_case import GoldenCase
from torch import Tensor
from torch.nn import functional as F

from d2v_lightning import Data2Vec, GLUEClassifier, ImageClassifier, SpeechCTC, load_backbone
from d2v_lightning.checkpoints import read_dictionary
from d2v_lightning.checkpoints.pretrained import FromPretrained
from d2v_lightning.nn.normalization import IMAGENET, INCEPTION

AUDIO = ["audio_padded", "audio_variant_prenorm", "d2v2_audio_alibi_padded"]
TEXT = ["text_padded", "d2v2_text_padded"]


def random_head(name: str, classes: int, dim: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(classes, dim, generator=generator)
    return {f"{name}.weight": weight, f"{name}.bias": torch.randn(classes, generator=generator)}


def network(case: GoldenCase) -> dict[str, Tensor]:
    """Weights without what fine-tuning removes."""
    gone = ("final_proj.", "modality_encoders.AUDIO.decoder.", "modality_encoders.TEXT.decoder.")
    return {name: tensor for name, tensor in case.group("model.").items() if not name.startswith(gone)}


def pretrained(case: GoldenCase, folder: Path) -> Data2Vec:
    return FromPretrained.from_pretrained(case.write_official_file(folder)).eval()


def write_ctc(case: GoldenCase, path: Path, dim: int, letters: int = 32, **file: Any) -> Path:
    head = random_head("w2v_encoder.proj", letters, dim)
    weights = {f"w2v_encoder.w2v_model.{name}": tensor for name, tensor in network(case).items()} | head
    options: Any = copy.deepcopy(case.json["official_options_set"])
    options |= dict.fromkeys(
        ("dropout", "encoder_dropout", "post_mlp_drop", "attention_dropout"), 0.3
    )  # of pre-training
    if "modalities" in options:
        options["modalities"]["audio"]["prenet_dropout"] = 0.3
    inner = {"model": options, "task": {"normalize": True}}
    outer = {"w2v_args": inner, "layerdrop": 0.05, "activation_dropout": 0.1, "freeze_finetune_updates": 7}
    torch.save({"model": weights, "cfg": {"model": outer, "task": {"normalize": True}}, **file}, path)
    return path


@pytest.mark.parametrize("name", AUDIO)
def test_letters(name: str, tmp_path: Path) -> None:
    case = GoldenCase(name)
    base = pretrained(case, tmp_path)
    model = FromPretrained.from_pretrained(write_ctc(case, tmp_path / "ctc.pt", base.backbone.dim)).eval()
    assert isinstance(model, SpeechCTC)
    batch = case.batch()
    log_probs, _ = model(batch["inputs"], batch.get("padding_mask"))
    head = random_head("w2v_encoder.proj", 32, base.backbone.dim)
    logits = F.linear(base.backbone(batch["inputs"], batch.get("padding_mask")), *head.values())
    torch.testing.assert_close(log_probs, logits.log_softmax(dim=-1))
    assert model.vocabulary is not None
    assert model.vocabulary[:6] == ["<blank>", "<pad>", "</s>", "<unk>", "|", "E"]
    options = model.backbone.transformer.config["init_args"]
    assert (options["layer_drop"], options["activation_dropout"], options["dropout"]) == (0.05, 0.1, 0.0)
    assert (options["attention_dropout"], options["input_dropout"]) == (0.0, 0.0)
    assert options["activation_dropout_twice"] == name.startswith("d2v2")
    assert (model.normalize, model.freeze_trunk_steps) == (True, 7)
    assert model.time_mask == ("noise" if name.startswith("d2v2") else "token")


def test_letters_of_another_language(tmp_path: Path) -> None:
    case, dim = GoldenCase("audio_padded"), 0
    dim = pretrained(case, tmp_path).backbone.dim
    path = write_ctc(case, tmp_path / "ctc.pt", dim, letters=7)
    with pytest.raises(ValueError, match=r"ctc.pt tells 7 letters apart and does not say which: give its dictionary"):
        FromPretrained.from_pretrained(path)
    (tmp_path / "dict.ltr.txt").write_text("| 10\nÄ 9\nß 8\n")
    vocabulary = FromPretrained.from_pretrained(path, read_dictionary(tmp_path / "dict.ltr.txt")).vocabulary
    assert vocabulary == ["<blank>", "<pad>", "</s>", "<unk>", "|", "Ä", "ß"]
    (tmp_path / "dict.ltr.txt").write_text("| 10\nÄ 9\n")
    with pytest.raises(ValueError, match="tells 7 letters apart, its dictionary has 6"):
        FromPretrained.from_pretrained(path, read_dictionary(tmp_path / "dict.ltr.txt"))
    (tmp_path / "dict.ltr.txt").write_text("| many\n")
    with pytest.raises(ValueError, match=r"dict.ltr.txt:1 is '\| many': a symbol and its count are expected"):
        read_dictionary(tmp_path / "dict.ltr.txt")


@pytest.mark.parametrize("name", TEXT)
def test_sentences(name: str, tmp_path: Path) -> None:
    case = GoldenCase(name)
    base = pretrained(case, tmp_path)
    dim, v2 = base.backbone.dim, name.startswith("d2v2")
    below = "classification_heads.sentence_classification_head."
    head = random_head(f"{below}dense", dim, dim) | random_head(f"{below}out_proj", 3, dim)
    weights = {("model." if v2 else "") + name: tensor for name, tensor in network(case).items()} | head
    options = case.json["official_options_set"]
    model = {"pretrained_model_args": {"model": options}} if v2 else options
    torch.save({"model": weights, "cfg": {"model": model, "task": {}}}, tmp_path / "glue.pt")
    found = FromPretrained.from_pretrained(tmp_path / "glue.pt").eval()
    assert isinstance(found, GLUEClassifier)
    batch = case.batch()
    dense, dense_bias, out, out_bias = head.values()
    first = base.backbone(batch["inputs"], batch.get("padding_mask"))[:, 0]
    expected = F.linear(torch.tanh(F.linear(first, dense, dense_bias)), out, out_bias)
    torch.testing.assert_close(found(batch["inputs"], batch.get("padding_mask")), expected)


@pytest.mark.parametrize("name", TEXT)
def test_one_of_several_heads_is_not_chosen_but_their_backbone_is_read(name: str, tmp_path: Path) -> None:
    case = GoldenCase(name)
    base, v2 = pretrained(case, tmp_path).backbone, name.startswith("d2v2")
    weights = {("model." if v2 else "") + key: tensor for key, tensor in network(case).items()}
    for head, classes in (("mnli", 3), ("sst_2", 2)):
        below = f"classification_heads.{head}."
        weights |= random_head(f"{below}dense", base.dim, base.dim) | random_head(f"{below}out_proj", classes, base.dim)
    options = case.json["official_options_set"]
    model = {"pretrained_model_args": {"model": options}} if v2 else options
    torch.save({"model": weights, "cfg": {"model": model, "task": {}}}, tmp_path / "glue.pt")
    with pytest.raises(ValueError, match="has the heads mnli, sst_2, one is expected"):
        GLUEClassifier.from_pretrained(tmp_path / "glue.pt")
    found, wanted = load_backbone(tmp_path / "glue.pt").state_dict(), base.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[key]) for key, tensor in found.items())


@pytest.mark.parametrize("name", ["vision_shared_relpos", "vision_perlayer_relpos", "d2v2_image"])
def test_image_classes(name: str, tmp_path: Path) -> None:
    case = GoldenCase(name)
    base = pretrained(case, tmp_path)
    v2 = name.startswith("d2v2")
    weights = case.group("model.")
    gone = ("norm.", "lm_head.", "mask_token", "modality_encoders.IMAGE.decoder.")
    weights = {("model." if v2 else "") + key: t for key, t in weights.items() if not key.startswith(gone)}
    norm = {"fc_norm.weight": torch.rand(base.backbone.dim), "fc_norm.bias": torch.rand(base.backbone.dim)}
    head = random_head("head", 10, base.backbone.dim)
    options: Any = case.json["official_options_set"]
    model = {"pretrained_model_args": {"model": options}, "drop_path_rate": 0.1}
    file = {"model": weights | norm | head}
    file |= {"cfg": {"model": model}} if v2 else {"args": argparse.Namespace(num_heads=options.get("num_heads"))}
    torch.save(file, tmp_path / "tuned.pth")
    found = FromPretrained.from_pretrained(tmp_path / "tuned.pth").eval()
    assert isinstance(found, ImageClassifier)
    assert base.encoder.normalization == IMAGENET
    assert found.encoder.normalization == (IMAGENET if v2 else INCEPTION)
    assert found.class_names is None, "the file has none"
    if not v2:
        file["args"].imagenet_default_mean_and_std = True
        torch.save(file, tmp_path / "other.pth")
        assert FromPretrained.from_pretrained(tmp_path / "other.pth").encoder.normalization == IMAGENET  # type: ignore[attr-defined]
    images = case.batch()["inputs"]
    tokens, _ = base.encoder.features(images)
    last = base.backbone.transformer.depth - 1
    block = base.backbone.contextualize(tokens, keep=[last])[1][0].block
    mean = F.layer_norm(block[:, 1:].mean(dim=1), block.shape[-1:], *norm.values(), 1e-6)
    torch.testing.assert_close(found(images), F.linear(mean, *head.values()))


def test_what_contradicts_itself_is_refused(tmp_path: Path) -> None:
    case = GoldenCase("audio_padded")
    path = write_ctc(case, tmp_path / "ctc.pt", pretrained(case, tmp_path).backbone.dim)
    file = torch.load(path)
    file["model"]["strange.weight"] = torch.zeros(1)
    torch.save(file, path)
    with pytest.raises(ValueError, match=r"weight 'strange.weight' is not part of a fine-tuned data2vec"):
        FromPretrained.from_pretrained(path)
    del file["model"]["strange.weight"], file["cfg"]["model"]["w2v_args"]
    torch.save(file, path)
    with pytest.raises(ValueError, match="its option w2v_args is missing, which says what network was fine-tuned"):
        FromPretrained.from_pretrained(path)


@pytest.mark.parametrize("version", ["audio_padded", "d2v2_audio_alibi_padded"])
def test_options_that_are_in_the_pre_trained_file_only(version: str, tmp_path: Path) -> None:
    """Fairseq's own fine-tuning stores `w2v_args: None` and the place of the file that it started from."""
    case = GoldenCase(version)
    pretrained = case.write_official_file(tmp_path)
    dropped = ("final_proj.", "modality_encoders.AUDIO.decoder.")
    network = {name: tensor for name, tensor in case.group("model.").items() if not name.startswith(dropped)}
    dim = next(
        t for name, t in network.items() if name.endswith(("final_layer_norm.weight", "blocks.0.norm1.weight"))
    ).shape[0]
    weights = {f"w2v_encoder.w2v_model.{name}": tensor for name, tensor in network.items()}
    weights |= {"w2v_encoder.proj.weight": torch.randn(32, dim), "w2v_encoder.proj.bias": torch.zeros(32)}
    path = tmp_path / "checkpoint_best.pt"

    def write(place: str) -> None:
        model = {"_name": "wav2vec_ctc", "w2v_path": place, "w2v_args": None}
        torch.save({"cfg": {"model": model, "task": {"normalize": True}}, "model": weights}, path)

    write(str(pretrained))
    found = SpeechCTC.from_pretrained(path)
    write("/elsewhere/base.pt")
    given = SpeechCTC.from_pretrained(path, pretrained=pretrained)
    assert given.config == found.config
    state = found.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in given.state_dict().items())
    assert torch.equal(state["head.weight"], weights["w2v_encoder.proj.weight"])
    with pytest.raises(ValueError, match=r"checkpoint_best\.pt: its option w2v_args is missing.*--pretrained FILE"):
        SpeechCTC.from_pretrained(path)
    with pytest.raises(ValueError, match="no pre-trained file at"):
        SpeechCTC.from_pretrained(path, pretrained="/elsewhere/base.pt")


def test_normalised_clips_that_the_pre_training_alone_tells(tmp_path: Path) -> None:
    case = GoldenCase("audio_unpadded")
    path = write_ctc(case, tmp_path / "ctc.pt", pretrained(case, tmp_path).backbone.dim)
    file = torch.load(path)
    file["cfg"]["task"], file["cfg"]["model"]["normalize"] = {}, None
    torch.save(file, path)
    assert SpeechCTC.from_pretrained(path).normalize


@pytest.mark.parametrize("mode", ["add", "set"])
def test_weight_of_the_blank(mode: str, tmp_path: Path) -> None:
    """`Wav2VecCtc.get_logits` (fairseq, `wav2vec2_asr.py`) adds `blank_weight` to the blank's logit or sets that."""
    case = GoldenCase("audio_unpadded")
    base = pretrained(case, tmp_path)
    path = write_ctc(case, tmp_path / "ctc.pt", base.backbone.dim)
    file = torch.load(path)
    file["cfg"]["model"] |= {"blank_weight": 2.5, "blank_mode": mode}
    torch.save(file, path)
    inputs = case.batch()["inputs"]
    logits = F.linear(base.backbone(inputs), *random_head("w2v_encoder.proj", 32, base.backbone.dim).values())
    logits[..., 0] = 2.5 + (logits[..., 0] if mode == "add" else 0.0)
    torch.testing.assert_close(SpeechCTC.from_pretrained(path).eval()(inputs)[0], logits.log_softmax(dim=-1))
    file["cfg"]["model"]["blank_mode"] = "double"
    torch.save(file, path)
    with pytest.raises(ValueError, match="blank_mode is 'double': 'add' and 'set' are known"):
        SpeechCTC.from_pretrained(path)


def write_image(case: GoldenCase, path: Path, dim: int, cfg: dict[str, Any] | None = None, norm: bool = True) -> Path:
    gone = ("norm.", "lm_head.", "mask_token", "modality_encoders.IMAGE.decoder.")
    below = "" if cfg is None else "model."
    weights = {below + key: tensor for key, tensor in case.group("model.").items() if not key.startswith(gone)}
    weights |= random_head("head", 10, dim)
    if norm:
        weights |= {"fc_norm.weight": torch.ones(dim), "fc_norm.bias": torch.zeros(dim)}
    options: Any = copy.deepcopy(case.json["official_options_set"])
    said = {"args": argparse.Namespace(num_heads=options.get("num_heads"), drop=0.25)}
    if cfg is not None:
        options["norm_eps"] = 1e-6
        said = {"cfg": {"model": {"pretrained_model_args": {"model": options}, **cfg}}}
    torch.save({"model": weights, **said}, path)
    return path


def test_linear_probe_of_1(tmp_path: Path) -> None:
    """`run_class_finetuning.py --linear_classifier` averages patches too, and its norm has no weights."""
    case = GoldenCase("vision_shared_relpos")
    dim, images = pretrained(case, tmp_path).backbone.dim, case.batch()["inputs"]
    tuned = ImageClassifier.from_pretrained(write_image(case, tmp_path / "tuned.pth", dim)).eval()
    probe = ImageClassifier.from_pretrained(write_image(case, tmp_path / "probe.pth", dim, norm=False)).eval()
    assert probe.pooling == "mean"
    torch.testing.assert_close(probe(images), tuned(images))
    assert tuned.backbone.transformer.config["init_args"]["dropout"] == 0.25  # its option `drop`
    assert tuned.backbone.transformer.config["init_args"]["input_dropout"] == 0.25


def test_norms_of_fine_tuned_images(tmp_path: Path) -> None:
    """The `norm_eps` of `mae_image_classification.py` replaces that of pre-training."""
    case = GoldenCase("d2v2_image")
    dim, images = pretrained(case, tmp_path).backbone.dim, case.batch()["inputs"]
    path = write_image(case, tmp_path / "tuned.pt", dim, {"norm_eps": 0.1})
    tuned = ImageClassifier.from_pretrained(path).eval()
    assert tuned.backbone.transformer.config["init_args"]["norm_eps"] == 0.1
    same = ImageClassifier.from_pretrained(write_image(case, tmp_path / "tuned.pt", dim, {"norm_eps": None})).eval()
    assert not torch.allclose(tuned(images), same(images), atol=1e-3)


@pytest.mark.parametrize(
    ("name", "place", "wrong", "message"),
    [
        ("audio_padded", (), {"activation_fn": "relu"}, "activation_fn is 'relu', only 'gelu' is known"),
        ("audio_padded", (), {"layer_type": "conformer"}, "layer_type is 'conformer', only 'transformer' is known"),
        ("text_padded", (), {"pooler_activation_fn": "relu"}, "pooler_activation_fn is 'relu', only 'tanh' is known"),
        ("text_padded", (), {"spectral_norm_classification_head": True}, "spectral_norm_classification_head is True"),
        ("d2v2_text_padded", ("modalities", "text"), {"no_scale_embedding": False}, "no_scale_embedding is False"),
        ("d2v2_image", ("modalities", "image"), {"use_alibi_encoder": True}, "use_alibi_encoder is True"),
    ],
)
def test_options_with_which_weights_mean_other_numbers(
    name: str, place: tuple[str, ...], wrong: dict[str, Any], message: str, tmp_path: Path
) -> None:
    case = GoldenCase(name)
    options: Any = case.json["official_options_set"]
    weights: dict[str, Tensor] = network(case)
    if name.startswith("text"):
        weights |= random_head("classification_heads.head.dense", 4, 4)
    for part in place:
        options = options.setdefault(part, {})
    options |= wrong
    torch.save({"model": weights, "cfg": {"model": case.json["official_options_set"]}}, tmp_path / "official.pt")
    with pytest.raises(ValueError, match=rf"official\.pt: its option [\w.]*{message}"):
        FromPretrained.from_pretrained(tmp_path / "official.pt")


def test_single_convolution_for_positions_of_2(tmp_path: Path) -> None:
    """Theirs has no weight norm, ours has, as 1.0."""
    case = GoldenCase("d2v2_audio_alibi_padded")
    later = re.compile(r"relative_positional_encoder\.([2-9])\.")
    weights = {key: tensor for key, tensor in network(case).items() if not later.search(key)}
    options: Any = case.json["official_options_set"]
    options["modalities"]["audio"]["conv_pos_depth"] = 1
    torch.save({"model": weights, "cfg": {"model": options}}, tmp_path / "official.pt")
    with pytest.raises(ValueError, match=r"official\.pt: its option conv_pos_depth is 1"):
        FromPretrained.from_pretrained(tmp_path / "official.pt")
