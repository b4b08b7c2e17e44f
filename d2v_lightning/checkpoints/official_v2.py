"""data2vec 2.0 as fairseq wrote it: `{"model": {..., "_ema": {...}}, "cfg": {"model": {...}}}`, one modality a file."""

from __future__ import annotations

from typing import Any

import torch

from d2v_lightning.checkpoints.content import FREE, NON_COMMERCIAL, Content
from d2v_lightning.checkpoints.official_v1_audio_text import split_teacher
from d2v_lightning.checkpoints.official_v2_options import FIXED, grid_of, refuse_borrowing, tree_of
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
from d2v_lightning.nn.encoders import AudioEncoder, Encoder, ImageEncoder, TextEncoder
from d2v_lightning.nn.position import sine_cosine_positions
from d2v_lightning.support.errors import UserError
from d2v_lightning.support.tensor_files import named_tensors

_BLOCK_PARTS = ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
# Below "modality_encoders.<MODALITY>.":
CONTEXT: Names = {
    **weight_and_bias("transformer.input_norm", "context_encoder.norm"),
    "transformer.position_bias.scale": ("alibi_scale",),
}
IMAGE: Names = {
    **weight_and_bias("encoder.patch_embed", "local_encoder.proj"),
    "encoder.position.class_token": ("extra_tokens",),
}
AUDIO: Names = {
    **weight_and_bias("encoder.convs.#", "local_encoder.conv_layers.#.0"),
    **weight_and_bias("encoder.norm", "project_features.1"),
    **weight_and_bias("encoder.proj", "project_features.2"),
    **weight_and_bias("encoder.position.convs.#", "relative_positional_encoder.#+1.0"),
}
LAYER_NORMS = weight_and_bias("encoder.conv_norms.#", "local_encoder.conv_layers.#.2.1")
GROUP_NORM = weight_and_bias("encoder.conv_norms.0", "local_encoder.conv_layers.0.2")
TEXT: Names = {
    "encoder.embedding.weight": ("local_encoder.embed_tokens.weight",),
    "encoder.position.embedding.weight": ("local_encoder.embed_positions.weight",),
    **weight_and_bias("encoder.position.norm", "local_encoder.layernorm_embedding"),
}
KINDS = {"AUDIO": "speech", "IMAGE": "images", "TEXT": "text"}


def is_v2(weights: Any) -> bool:
    """Whether the names of a file's weights are those of data2vec 2.0."""
    return any(str(name).startswith("modality_encoders.") for name in weights)


def convert(file: dict[str, Any], path: str, whole: bool = True) -> Content:
    """A pre-trained `Data2Vec`, see `convert_official`."""
    cfg = as_options(file["cfg"]) or {}
    options = model_options(cfg, path)
    weights, ema = split_teacher(file["model"], path)
    student = named_tensors(weights, path)
    modality = modality_of(student, path)
    tree = tree_of(student, modality, options, cfg, path)
    with torch.device("meta"):
        model: Objective = build(tree)
    rows: list[Row] = []
    table = _student_table(model)
    needed = needed_of(model.student.state_dict(), student, table, whole)
    state = to_ours(needed, student, table, path, rows, "student.")
    converted = {f"student.{name}": tensor for name, tensor in state.items()}
    drop_fixed(student, path, rows, model.encoder)
    kind = f"data2vec 2.0 for {KINDS[modality]}, pre-trained"
    licence = NON_COMMERCIAL if modality == "IMAGE" else FREE
    if ema is None:
        rank_zero_info(f"{path} has no teacher ('_ema'): the teacher starts as a copy of the student")
        for name in model.teacher.state_dict():
            below = f"encoder.{name}" if name.startswith("position.") else name
            converted[f"teacher.{name}"] = state[f"backbone.{below}"].clone()
        return Content(tree, converted, f"{kind}, without teacher", licence, rows)
    refuse_borrowing(model.backbone, modality, options)
    teacher = named_tensors(ema, f"{path} (_ema)")
    state = to_ours(model.teacher.state_dict(), teacher, _teacher_table(model), f"{path} (_ema)", rows, "teacher.")
    drop_fixed(teacher, f"{path} (_ema)", rows, model.encoder)
    return Content(tree, converted | {f"teacher.{name}": tensor for name, tensor in state.items()}, kind, licence, rows)


def modality_of(state: State, path: str) -> str:
    """AUDIO, IMAGE or TEXT, after the only encoder in the file.

    Raises:
        ValueError: it has another, or several.
    """
    modalities = sorted({name.split(".")[1] for name in state if name.startswith("modality_encoders.")})
    if len(modalities) != 1 or modalities[0] not in KINDS:
        raise UserError(f"{path} has encoders for {', '.join(modalities)}: one of AUDIO, IMAGE and TEXT is expected")
    return modalities[0]


def drop_fixed(rest: State, path: str, rows: list[Row], encoder: Encoder) -> None:
    """Drop tables of positions, which follow from the grid.

    Raises:
        ValueError: one does not, or anything else is left.
    """
    drop_tables(rest, path, rows, encoder)
    if rest:
        raise UserError(f"{path}: weight {min(rest)!r} is not part of data2vec 2.0 pre-training")


def drop_tables(rest: State, path: str, rows: list[Row], encoder: Encoder) -> None:
    """Drop tables of positions that are those of an image encoder's grid.

    Raises:
        ValueError: one is another.
    """
    for name in [name for name in rest if name.endswith(FIXED) and isinstance(encoder, ImageEncoder)]:
        if grid_of(rest[name], name) != encoder.grid:
            raise UserError(f"{path}: weight {name!r} is not the table of positions of {encoder.grid} patches")
        drop(rest, name, "follows from the grid", rows)


def state_dict(model: Objective) -> dict[str, Any]:
    """`{"model": {..., "_ema": {...}}}`, see `official_state_dict`."""
    below = f"modality_encoders.{_modality(model.encoder)}."
    heads = model.backbone.transformer.config["init_args"]["num_heads"]
    shapes = {f"{below}alibi_scale": (-1, 1, heads, 1, 1)}
    student: dict[str, Any] = to_theirs(model.student.state_dict(), _student_table(model), shapes)
    teacher = to_theirs(model.teacher.state_dict(), _teacher_table(model), shapes)
    encoder = model.encoder
    if isinstance(encoder, ImageEncoder) and encoder.position.fixed is not None:
        for state in (student, teacher):
            state[below + FIXED] = sine_cosine_positions(encoder.grid, encoder.dim)
    return {"model": {**student, "_ema": teacher}}


# ---- names -----------------------------------------------------------------------------------------------------------


def _modality(encoder: Encoder) -> str:
    return {ImageEncoder: "IMAGE", AudioEncoder: "AUDIO", TextEncoder: "TEXT"}[type(encoder)]


def _student_table(model: Objective) -> Names:
    below = f"modality_encoders.{_modality(model.encoder)}."
    decoder = model.student.decoder.config["init_args"]
    convs, projections = decoder["depth"], decoder["projection_depth"]
    names: Names = weight_and_bias("decoder.proj.0", f"{below}decoder.proj")
    for layer in range(projections if projections > 1 else 0):
        names |= weight_and_bias(f"decoder.proj.{layer}", f"{below}decoder.proj.{2 * layer}")
    for layer in range(convs):
        names |= weight_and_bias(f"decoder.convs.{layer}", f"{below}decoder.blocks.{layer}.0")
    return names | prefixed(backbone_table(model.backbone), "backbone.")


def _teacher_table(model: Objective) -> Names:
    backbone = backbone_table(model.backbone)
    if model.teacher.scope == "backbone":
        return backbone
    if model.teacher.scope == "transformer":  # the blocks alone, without the name of their list
        return {name: tuple(other.removeprefix("blocks.") for other in others) for name, others in backbone.items()}
    position = {
        name.removeprefix("encoder."): others
        for name, others in backbone.items()
        if name.startswith("encoder.position.")
    }
    return backbone | position


def backbone_table(backbone: Backbone) -> Names:
    """Names of a backbone's weights, ours and theirs: prenet blocks are those that are not averaged."""
    encoder, below = backbone.encoder, f"modality_encoders.{_modality(backbone.encoder)}."
    prenet = backbone.transformer.prenet_depth
    own = {"IMAGE": IMAGE, "AUDIO": AUDIO, "TEXT": TEXT}[_modality(encoder)]
    if isinstance(encoder, AudioEncoder):
        own = own | (LAYER_NORMS if encoder.conv_norm == "layer" else GROUP_NORM)
    names = prefixed(CONTEXT | own, theirs=below)
    for layer in range(backbone.transformer.depth):
        theirs = f"{below}context_encoder.blocks.{layer}" if layer < prenet else f"blocks.{layer - prenet}"
        for part in _BLOCK_PARTS:
            names |= weight_and_bias(f"transformer.blocks.{layer}.{part}", f"{theirs}.{part}")
    return names | weight_and_bias("transformer.norm", "norm")
