"""Meta's fine-tuned files: letters by CTC (1.0, 2.0), sentence classes (1.0, 2.0), ImageNet classes (1.0, 2.0)."""

from __future__ import annotations

import os
from typing import Any, Literal

import torch

from d2v_lightning.checkpoints import official_v1_audio_text, official_v1_image, official_v2, official_v2_options
from d2v_lightning.checkpoints.content import FREE, NON_COMMERCIAL, Content
from d2v_lightning.checkpoints.official_v1_audio_text_options import audio_backbone, text_backbone
from d2v_lightning.checkpoints.options import as_options, model_options, option, plain_options, refuse_unknown
from d2v_lightning.checkpoints.tables import Names, Row, State, drop, prefixed, to_ours, weight_and_bias
from d2v_lightning.configurable import build, plain
from d2v_lightning.flavour import rank_zero_info
from d2v_lightning.letters import BLANK, LIBRISPEECH, SEPARATOR, UNKNOWN
from d2v_lightning.nn.backbone import Backbone
from d2v_lightning.nn.encoders.audio import RATE
from d2v_lightning.support.errors import UserError
from d2v_lightning.support.tensor_files import Weights, named_tensors, read_tensors

CTC, CTC_HEAD = "w2v_encoder.w2v_model.", "w2v_encoder.proj"
HEADS = "classification_heads."
PRETRAINED_AT = ("w2v_path", "model_path")  # where a fine-tuned file says that it started from
V2_PREFIX = "model."  # what 2.0 puts before the network's names in images and text
IMAGE_HEAD: Names = weight_and_bias("head", "head") | weight_and_bias("norm", "fc_norm")
# Where a file says whether clips had mean 0 and variance 1; `wav2vec2_asr.py` asserts that pre-training says the same.
NORMALIZED = ("task.normalize", "model.normalize", "model.w2v_args.task.normalize", "model.w2v_args.normalize")
FAIRSEQ_SPECIAL = [BLANK, "<pad>", "</s>", UNKNOWN]  # fairseq's `<s>` stands for the blank


def is_finetuned(file: dict[str, Any]) -> bool:
    """Whether a file in an official layout has a head of a task."""
    names = [str(name) for name in file["model"]]
    return any(name == f"{CTC_HEAD}.weight" or name == "head.weight" or name.startswith(HEADS) for name in names)


def convert(file: dict[str, Any], path: str, dictionary: list[str] | None = None, whole: bool = True) -> Content:
    """A `SpeechCTC`, `ImageClassifier` or `GLUEClassifier`, see `convert_official`. Of several heads one is taken where the
    backbone is all that is wanted."""
    weights = named_tensors(official_v1_audio_text.split_teacher(file["model"], path)[0], path)
    cfg = as_options(file.get("cfg"))
    if cfg is None:
        if file.get("model_ema") is not None:
            rank_zero_info(f"{path} also has an average of its weights (model_ema), which is left out")
        return _image_1(weights, as_options(file.get("args")) or {}, path)
    if f"{CTC_HEAD}.weight" in weights:
        return _ctc(weights, cfg, dictionary or _symbols(file), path)
    if "head.weight" in weights:
        return _image_2(weights, cfg, path)
    return _sentences(weights, cfg, path, whole)


# ---- speech ------------------------------------------------------------------------------------------------------------


def _ctc(weights: Weights, cfg: dict[str, Any], symbols: list[str] | None, path: str) -> Content:
    outer = model_options(cfg, path)
    inner = {**_inner(outer, "w2v_args", path)}
    for ours, theirs in (
        ("dropout", "dropout"),
        ("encoder_dropout", "dropout"),
        ("post_mlp_drop", "dropout"),
        ("attention_dropout", "attention_dropout"),
        ("activation_dropout", "activation_dropout"),
        ("encoder_layerdrop", "layerdrop"),
        ("layerdrop", "layerdrop"),
    ):
        inner[ours] = option(outer, theirs, default=0.0)
    _set_prenet_dropout(inner, "audio", inner["dropout"])
    network = _below(weights, CTC)
    v2 = official_v2.is_v2(network)
    backbone = _network(network, inner, path, "AUDIO")
    rows: list[Row] = []
    arguments = {
        "backbone": backbone,
        "vocabulary": _vocabulary(symbols, weights.sizes(f"{CTC_HEAD}.weight", 2)[0], path),
        "normalize": bool(option(cfg, *NORMALIZED, default=False)),
        "sample_rate": int(option(cfg, "task.sample_rate", default=RATE)),
        "time_mask": "noise" if v2 else "token",
        "freeze_trunk_steps": int(option(outer, "freeze_finetune_updates", default=0)),
    }
    table = prefixed(_table(backbone, v2), "backbone.", CTC) | weight_and_bias("head", CTC_HEAD)
    table["mask_token"] = (f"{CTC}mask_emb",)
    _weigh_blank(weights, outer)
    if v2:  # masks with noise, and has no token
        weights[f"{CTC}mask_emb"] = torch.zeros(backbone.dim)
    content = _content("SpeechCTC", arguments, weights, table, rows, path)
    if v2:
        rows[:] = [row for row in rows if row.ours != "mask_token"]
    return Content(*content, f"data2vec {1 + v2}.0 for speech, fine-tuned with CTC", FREE, rows)


def _weigh_blank(weights: Weights, outer: dict[str, Any]) -> None:
    """Put what `wav2vec2_asr.py` adds to the logit of the blank, or sets it to, into the head."""
    weight, mode = float(option(outer, "blank_weight", default=0)), option(outer, "blank_mode", default="add")
    if weight == 0.0 or not weights[f"{CTC_HEAD}.bias"].is_floating_point():  # no real numbers, which is refused later
        return
    if mode not in ("add", "set"):
        raise UserError(f"its option blank_mode is {mode!r}: 'add' and 'set' are known")
    row, bias = weights[f"{CTC_HEAD}.weight"].clone(), weights[f"{CTC_HEAD}.bias"].clone()
    if mode == "set":
        row[0], bias[0] = 0.0, 0.0
    bias[0] += weight
    weights[f"{CTC_HEAD}.weight"], weights[f"{CTC_HEAD}.bias"] = row, bias
    rank_zero_info(f"the blank's weight of {weight} (blank_mode {mode!r}) is now part of the head")


def _symbols(file: dict[str, Any]) -> list[str] | None:
    """Letters by number, where fairseq stored its dictionary beside the weights."""
    stored = option(as_options(file.get("task_state")) or {}, "target_dictionary", default=None)
    symbols = getattr(stored, "symbols", None)
    return list(symbols) if isinstance(symbols, list) and all(isinstance(symbol, str) for symbol in symbols) else None


def _vocabulary(symbols: list[str] | None, size: int, path: str) -> list[str]:
    """The dictionary of fairseq as ours: the blank first. LibriSpeech's where there is none and the size is its."""
    if symbols is None:
        symbols = [*FAIRSEQ_SPECIAL, *LIBRISPEECH[1:]]
        if size != len(symbols):
            raise UserError(
                f"{path} tells {size} letters apart and does not say which: give its dictionary (dict.ltr.txt)"
            )
    if len(symbols) != size or SEPARATOR not in symbols:
        raise UserError(
            f"{path} tells {size} letters apart, its dictionary has {len(symbols)}"
            + ("" if SEPARATOR in symbols else f", {SEPARATOR!r} between words not among them")
        )
    return [BLANK, *symbols[1:]]


# ---- text --------------------------------------------------------------------------------------------------------------


def _sentences(weights: Weights, cfg: dict[str, Any], path: str, whole: bool) -> Content:
    heads = sorted({name.split(".")[1] for name in weights if name.startswith(HEADS)})
    if len(heads) != 1 and whole:
        raise UserError(
            f"{path} has the heads {', '.join(heads)}, one is expected: GLUEClassifier(checkpoint=...) starts from its "
            "backbone"
        )
    below = f"{HEADS}{heads[0]}"
    options, prefix = model_options(cfg, path), ""
    refuse_unknown(options, {"pooler_activation_fn": "tanh", "spectral_norm_classification_head": False})
    if any(name.startswith(f"{V2_PREFIX}modality_encoders.") for name in weights):
        options, prefix = _inner(options, "pretrained_model_args", path), V2_PREFIX
    weights = official_v1_audio_text.renamed(weights)
    backbone = _network(_below(weights, prefix), options, path, "TEXT")
    rows: list[Row] = []
    for name in list(weights):
        if name.startswith(("encoder.regression_head.", "encoder.lm_head.")):
            drop(weights, name, "of pre-training", rows)
        elif name.startswith(HEADS) and not name.startswith(f"{below}."):
            drop(weights, name, "another head", rows)
    official_v1_audio_text.drop_version(weights, rows)
    names = _table(backbone, v2=bool(prefix))
    table = prefixed(names, "backbone.", prefix)
    table |= weight_and_bias("dense", f"{below}.dense") | weight_and_bias("out_proj", f"{below}.out_proj")
    arguments = {
        "task": "custom",
        "num_classes": weights.sizes(f"{below}.out_proj.weight", 2)[0],
        "backbone": backbone,
        "head_dropout": float(option(model_options(cfg, path), "pooler_dropout", default=0.0)),
    }
    content = _content("GLUEClassifier", arguments, weights, table, rows, path)
    return Content(*content, f"data2vec {2 if prefix else 1}.0 for text, fine-tuned on sentences", FREE, rows)


# ---- images ------------------------------------------------------------------------------------------------------------


def _image_1(weights: Weights, options: dict[str, Any], path: str) -> Content:
    rows: list[Row] = []
    probe = not any(name in weights for name in ("norm.weight", "fc_norm.weight"))  # --linear_classifier
    if probe:  # which has a norm without weights
        dim = weights.sizes("head.weight", 2)[1]
        weights["fc_norm.weight"], weights["fc_norm.bias"] = torch.ones(dim), torch.zeros(dim)
    pooling: Literal["mean", "class_token"] = "mean" if "fc_norm.weight" in weights else "class_token"
    backbone = official_v1_image.backbone_of(
        weights, options, path, final_norm="norm.weight" in weights, finetuned=True
    )
    official_v1_image.share_only_table(weights)
    if pooling == "mean" and "norm.weight" in weights:
        raise UserError(f"{path} has both a norm of all tokens and one of their mean (fc_norm), which no network has")
    official_v1_image.drop_index(weights, path, rows, backbone.encoder)
    table = prefixed(official_v1_image.BACKBONE, "backbone.") | IMAGE_HEAD
    arguments = {"num_classes": weights.sizes("head.weight", 2)[0], "backbone": backbone, "pooling": pooling}
    content = _content("ImageClassifier", arguments, weights, table, rows, path)
    rows[:] = [row for row in rows if not (probe and row.theirs.startswith("fc_norm."))]
    return Content(*content, "data2vec 1.0 for images, fine-tuned on classes", NON_COMMERCIAL, rows)


def _image_2(weights: Weights, cfg: dict[str, Any], path: str) -> Content:
    options = model_options(cfg, path)
    mode = str(option(options, "prediction_mode", default="MEAN_POOLING")).rpartition(".")[2]
    if mode != "MEAN_POOLING" or "fc_norm.weight" not in weights:
        raise UserError(
            f"{path}: its classes are read off in a way that ours does not know (prediction_mode {mode}, "
            f"{'with' if 'fc_norm.weight' in weights else 'without'} fc_norm): the mean of the patches, then a norm, is known"
        )
    inner = {**_inner(options, "pretrained_model_args", path)}
    inner["norm_eps"] = option(options, "norm_eps", default=option(inner, "norm_eps", default=1e-6))
    inner["end_drop_path_rate"] = option(options, "drop_path_rate", default=0.1)
    for name in ("encoder_dropout", "post_mlp_drop", "attention_dropout", "activation_dropout", "layerdrop"):
        inner[name] = option(options, name, default=0.0)
    _set_prenet_dropout(inner, "image", option(options, "prenet_dropout", default=0.0))
    backbone = _network(_below(weights, V2_PREFIX), inner, path, "IMAGE")
    rows: list[Row] = []
    official_v2.drop_tables(weights, path, rows, backbone.encoder)
    table = prefixed(_table(backbone, v2=True), "backbone.", V2_PREFIX) | IMAGE_HEAD
    arguments = {"num_classes": weights.sizes("head.weight", 2)[0], "backbone": backbone}
    content = _content("ImageClassifier", arguments, weights, table, rows, path)
    return Content(*content, "data2vec 2.0 for images, fine-tuned on classes", NON_COMMERCIAL, rows)


# ---- what they share ---------------------------------------------------------------------------------------------------


def _below(weights: Weights, prefix: str) -> Weights:
    return Weights({name[len(prefix) :]: t for name, t in weights.items() if name.startswith(prefix)})


def _inner(options: dict[str, Any], name: str, path: str) -> dict[str, Any]:
    """The options of the pre-training that a fine-tuned file started from."""
    given = as_options(options.get(name))
    if given is None:
        given = _of_pretrained(options, name, path)
    return as_options(given.get("model")) or given


def _set_prenet_dropout(options: dict[str, Any], modality: str, dropout: float) -> None:
    """Fine-tuning of 2.0 sets what acts on the trunk's input anew; 1.0 has no such section."""
    modalities = as_options(options.get("modalities"))
    own = as_options((modalities or {}).get(modality))
    if modalities is not None and own is not None:
        options["modalities"] = {**modalities, modality: {**own, "prenet_dropout": dropout}}


def _of_pretrained(options: dict[str, Any], name: str, path: str) -> dict[str, Any]:
    """The options in the pre-trained file that a fine-tuned one names: fairseq's own fine-tuning stores nothing else.

    Raises:
        ValueError: it names none that is there.
    """
    named = option(options, *PRETRAINED_AT, default="")
    if not os.path.isfile(named):
        raise UserError(
            f"{path}: its option {name} is missing, which says what network was fine-tuned, and so is the pre-trained file "
            f"that it names ({named[:200]!r}): give that file as --pretrained FILE (pretrained=... in Python)"
        )
    file = read_tensors(named, mapped=True)
    given = as_options(plain_options(file.get("cfg"))) if isinstance(file, dict) else None
    if given is None:
        raise UserError(f"{path} was fine-tuned from {named}, which has no 'cfg' that says what network that is")
    rank_zero_info(f"{path}: the options of the network are those of the pre-trained file {named}")
    return given


def _network(weights: Weights, options: dict[str, Any], path: str, modality: str) -> Backbone:
    if official_v2.is_v2(weights):
        found = official_v2.modality_of(weights, path)
        if found != modality:
            raise UserError(f"{path} has a head for {modality} on an encoder for {found}")
        return official_v2_options.backbone_of(weights, modality, options, path)
    if modality == "AUDIO":
        return audio_backbone(weights, options, path)
    return text_backbone(weights, options, path)


def _table(backbone: Backbone, v2: bool) -> Names:
    return official_v2.backbone_table(backbone) if v2 else official_v1_audio_text.backbone_table(backbone)


def _content(
    name: str, arguments: dict[str, Any], weights: Weights, table: Names, rows: list[Row], path: str
) -> tuple[Any, State]:
    """Constructor tree and state of one of our fine-tuning modules; every weight must have its place."""
    tree = {"class_path": f"d2v_lightning.{name}", "init_args": plain(arguments)}
    with torch.device("meta"):
        module = build(tree)
    state = to_ours(module.state_dict(), weights, table, path, rows)
    for decoder in [name for name in weights if ".decoder." in name or name.startswith(f"{CTC}final_proj.")]:
        drop(weights, decoder, "of pre-training", rows)
    if weights:
        raise UserError(f"{path}: weight {min(weights)!r} is not part of a fine-tuned data2vec")
    return module.config, state
