"""data2vec 1.0 for speech and text as fairseq wrote it: `{"model": {..., "_ema": {...}}, "cfg": {"model": {...}}}`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from d2v_lightning.checkpoints.content import FREE, Content
from d2v_lightning.checkpoints.official_v1_audio_text_options import TEXT_PREFIX, audio_tree, text_tree
from d2v_lightning.checkpoints.options import as_options, model_options
from d2v_lightning.checkpoints.tables import (
    Names,
    Row,
    State,
    drop,
    needed_of,
    prefixed,
    to_ours,
    to_theirs,
    weight_and_bias,
)
from d2v_lightning.configurable import build
from d2v_lightning.flavour import rank_zero_info
from d2v_lightning.method.objective import Objective
from d2v_lightning.nn.backbone import Backbone
from d2v_lightning.nn.decoder import MlpDecoder
from d2v_lightning.nn.encoders import AudioEncoder, TextEncoder
from d2v_lightning.support.errors import UserError
from d2v_lightning.support.tensor_files import Weights, named_tensors

TRUNK: Names = {
    **weight_and_bias(
        "blocks.#.attn.qkv",
        "layers.#.self_attn.q_proj",
        "layers.#.self_attn.k_proj",
        "layers.#.self_attn.v_proj",
    ),
    **weight_and_bias("blocks.#.attn.proj", "layers.#.self_attn.out_proj"),
    **weight_and_bias("blocks.#.norm1", "layers.#.self_attn_layer_norm"),
    **weight_and_bias("blocks.#.norm2", "layers.#.final_layer_norm"),
    **weight_and_bias("blocks.#.mlp.fc1", "layers.#.fc1"),
    **weight_and_bias("blocks.#.mlp.fc2", "layers.#.fc2"),
    **weight_and_bias("input_norm", "layer_norm"),  # post-norm trunks have the one,
    **weight_and_bias("norm", "layer_norm"),  # pre-norm trunks the other
}
# Speech: convolutions with a layer norm each, or with one group norm after the first.
AUDIO_FEATURES: Names = {
    **weight_and_bias("convs.#", "feature_extractor.conv_layers.#.0"),
    **weight_and_bias("norm", "layer_norm"),
    **weight_and_bias("proj", "post_extract_proj"),
}
LAYER_NORMS = weight_and_bias("conv_norms.#", "feature_extractor.conv_layers.#.2.1")
GROUP_NORM = weight_and_bias("conv_norms.0", "feature_extractor.conv_layers.0.2")
POSITIONS = weight_and_bias("convs.#", "pos_conv.#.0")
ONE_POSITION: Names = {
    "convs.0.bias": ("pos_conv.0.bias",),
    "convs.0.parametrizations.weight.original0": ("pos_conv.0.weight_g",),
    "convs.0.parametrizations.weight.original1": ("pos_conv.0.weight_v",),
}
AUDIO_HEAD: Names = {"mask_token": ("mask_emb",), **weight_and_bias("decoder.proj", "final_proj")}
TEXT_EMBEDDING: Names = {
    "embedding.weight": ("embed_tokens.weight",),
    "position.embedding.weight": ("embed_positions.weight",),
    **weight_and_bias("position.norm", "layernorm_embedding"),
}
TEXT_VERSION = "version"  # a number that fairseq keeps among the weights
# How older text files call the same; fairseq renames them too. Teachers were a module once.
_OLDER = (
    (re.compile(r"(^|\.)emb_layer_norm\."), r"\1layernorm_embedding."),
    (re.compile(r"^decoder\."), "encoder."),
    (re.compile(r"^encoder\.lm_head\.(?=\d)"), "encoder.regression_head."),
)
_TEACHERS = ("_ema", "encoder._ema")  # the model's own, or its encoder's, which is where 1.0 text has it
_TEACHER_MODULE = "encoder.target_model."


def convert(file: dict[str, Any], path: str, whole: bool = True) -> Content:
    """A pre-trained `Data2Vec`, see `convert_official`."""
    cfg = as_options(file["cfg"]) or {}
    options = model_options(cfg, path)
    weights, ema = split_teacher(file["model"], path)
    student = renamed(named_tensors(weights, path))
    if is_audio(student):
        tree, modality = audio_tree(student, options, cfg, path), "speech"
    elif any(name.startswith(TEXT_PREFIX) for name in student):
        tree, modality = text_tree(student, options, cfg, path), "text"
    else:
        name = str(options.get("_name"))[:100]
        raise UserError(
            f"{path}: its model {name!r} has neither convolutions of waveforms nor a sentence encoder among its weights"
        )
    with torch.device("meta"):
        model: Objective = build(tree)
    rows: list[Row] = []
    table = _student_table(model)
    needed = needed_of(model.student.state_dict(), student, table, whole)
    state = to_ours(needed, student, table, path, rows, "student.")
    converted = {f"student.{name}": tensor for name, tensor in state.items()}
    drop_version(student, rows)
    _refuse_rest(student, path)
    kind = f"data2vec 1.0 for {modality}, pre-trained"
    if ema is None:
        rank_zero_info(f"{path} has no teacher ('_ema'): the teacher starts as a copy of the student")
        for name in model.teacher.state_dict():
            converted[f"teacher.{name}"] = converted[_student_name(name)].clone()
        return Content(tree, converted, f"{kind}, without teacher", FREE, rows)
    teacher = renamed(named_tensors(ema, f"{path} (_ema)"))
    state = to_ours(model.teacher.state_dict(), teacher, _teacher_table(model), f"{path} (_ema)", rows, "teacher.")
    for name in [name for name in teacher if name.startswith(("pos_conv.", "embed_", "layernorm_embedding."))]:
        drop(teacher, name, "the teacher shares the student's", rows)
    for name in [name for name in teacher if name == "mask_emb" or name.startswith("final_proj.")]:
        drop(teacher, name, "the teacher has no use for it", rows)
    drop_version(teacher, rows)
    _refuse_rest(teacher, f"{path} (_ema)")
    return Content(tree, converted | {f"teacher.{name}": tensor for name, tensor in state.items()}, kind, FREE, rows)


def split_teacher(weights: Mapping[str, Any], path: str) -> tuple[dict[str, Any], Any]:
    """What a file's model holds, and its teacher's weights apart; None where it has none."""
    rest = dict(weights)
    found = [rest.pop(name) for name in _TEACHERS if name in rest]
    module = {str(name): rest.pop(name) for name in weights if str(name).startswith(_TEACHER_MODULE)}
    if module:
        found.append({name.removeprefix(_TEACHER_MODULE): tensor for name, tensor in module.items()})
    if len(found) > 1:
        raise UserError(f"{path} has {len(found)} teachers")
    return rest, found[0] if found else None


def renamed(weights: State) -> Weights:
    """Weights of older text files under the names of today."""
    state = Weights()
    for name, tensor in weights.items():
        for older, today in _OLDER:
            name = older.sub(today, name)
        state[name] = tensor
    return state


def is_audio(weights: State) -> bool:
    """Whether the names are those of a 1.0 speech model."""
    return any(name.startswith("feature_extractor.") for name in weights)


def drop_version(rest: State, rows: list[Row]) -> None:
    """Drop the number that fairseq keeps among the weights of text models."""
    for name in [name for name in rest if name.rpartition(".")[2] == TEXT_VERSION]:
        drop(rest, name, "a version number", rows)


def state_dict(model: Objective) -> dict[str, State]:
    """`{"model": {..., "_ema": {...}}}`, see `official_state_dict`; of text it is "encoder._ema", which is what
    `Data2VecTextEncoder` asserts on loading (fairseq, `examples/data2vec/models/data2vec_text.py`)."""
    flat = {"mask_emb": (-1,)}
    student: dict[str, Any] = to_theirs(model.student.state_dict(), _student_table(model), flat)
    teacher = to_theirs(model.teacher.state_dict(), _teacher_table(model))
    if model.teacher.scope != "backbone":
        below = "encoder." if isinstance(model.encoder, AudioEncoder) else TEXT_PREFIX
        copied = ("pos_conv.", "embed_", "layernorm_embedding.")
        teacher |= {
            name.removeprefix(below): tensor.clone()
            for name, tensor in student.items()
            if name.removeprefix(below).startswith(copied) and name.removeprefix(below) not in teacher
        }
    if isinstance(model.encoder, TextEncoder):
        version = torch.tensor([3.0])
        student[TEXT_PREFIX + TEXT_VERSION], teacher[TEXT_VERSION] = version, version.clone()
    return {"model": {**student, _TEACHERS[isinstance(model.encoder, TextEncoder)]: teacher}}


# ---- names -----------------------------------------------------------------------------------------------------------


def _student_table(model: Objective) -> Names:
    head: Names = AUDIO_HEAD
    if isinstance(model.encoder, TextEncoder):
        decoder = model.student.decoder
        head = weight_and_bias("decoder.proj", "encoder.regression_head.0")
        for layer in range(decoder.config["init_args"]["depth"] if isinstance(decoder, MlpDecoder) else 0):
            head |= weight_and_bias(f"decoder.layers.{layer}", f"encoder.regression_head.{2 * layer}")
    return head | prefixed(backbone_table(model.backbone), "backbone.")


def backbone_table(backbone: Backbone) -> Names:
    """Names of a backbone's weights, ours and theirs."""
    encoder = backbone.encoder
    if isinstance(encoder, TextEncoder):
        names = prefixed(TEXT_EMBEDDING, "encoder.") | prefixed(TRUNK, "transformer.")
        return prefixed(names, theirs=TEXT_PREFIX)
    assert isinstance(encoder, AudioEncoder)
    features = AUDIO_FEATURES | (LAYER_NORMS if encoder.conv_norm == "layer" else GROUP_NORM)
    trunk = prefixed(_audio_positions(backbone), "encoder.position.") | prefixed(TRUNK, "transformer.")
    return prefixed(features, "encoder.") | prefixed(trunk, theirs="encoder.")


def _teacher_table(model: Objective) -> Names:
    trunk = prefixed(TRUNK, "transformer.")
    if isinstance(model.encoder, TextEncoder):
        return trunk | prefixed(TEXT_EMBEDDING, "encoder.")
    if model.teacher.scope == "backbone":
        return backbone_table(model.backbone)
    return trunk | prefixed(_audio_positions(model.backbone), "position.")


def _audio_positions(backbone: Backbone) -> Names:
    return POSITIONS if backbone.encoder.config["init_args"]["position_depth"] > 1 else ONE_POSITION


def _student_name(teacher_name: str) -> str:
    """Where the student keeps a weight of the teacher."""
    name = teacher_name.removeprefix("teacher.")
    return "student.backbone." + (f"encoder.{name}" if name.startswith("position.") else name)


def _refuse_rest(rest: State, path: str) -> None:
    if rest:
        raise UserError(f"{path}: weight {min(rest)!r} is not part of data2vec 1.0 pre-training")
