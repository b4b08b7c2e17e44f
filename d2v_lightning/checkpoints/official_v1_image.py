"""data2vec 1.0 for images as BEiT's trainer wrote it: `{"model", "model_ema", "args"}`."""

from __future__ import annotations

import math
import re
from typing import Any

import torch

from d2v_lightning.callbacks.ema_teacher import EMATeacher
from d2v_lightning.checkpoints.content import NON_COMMERCIAL, Content
from d2v_lightning.checkpoints.options import as_options, option, refuse_contradictions
from d2v_lightning.checkpoints.tables import (
    Row,
    State,
    depth_of,
    drop,
    needed_of,
    prefixed,
    to_ours,
    to_theirs,
    weight_and_bias,
)
from d2v_lightning.configurable import Tree, build, plain
from d2v_lightning.flavour import rank_zero_info
from d2v_lightning.method.losses import RegressionLoss
from d2v_lightning.method.objective import Objective
from d2v_lightning.method.student import MaskTokenStudent
from d2v_lightning.method.targets import Norm, Targets
from d2v_lightning.nn.backbone import Backbone
from d2v_lightning.nn.decoder import LinearDecoder
from d2v_lightning.nn.encoders import Encoder, ImageEncoder
from d2v_lightning.nn.encoders.image import patch_grid
from d2v_lightning.nn.normalization import IMAGENET, INCEPTION
from d2v_lightning.nn.position import RelativePositionBias, is_index_of, relative_position_index
from d2v_lightning.nn.transformer import Transformer
from d2v_lightning.optim.optimization import Optimization
from d2v_lightning.support.errors import UserError
from d2v_lightning.support.tensor_files import Weights, named_tensors

BACKBONE = {
    "encoder.position.class_token": ("cls_token",),
    "encoder.position.embedding": ("pos_embed",),
    **weight_and_bias("encoder.patch_embed", "patch_embed.proj"),
    "transformer.position_bias.shared_table": ("rel_pos_bias.relative_position_bias_table",),
    "transformer.position_bias.block_tables.#": ("blocks.#.attn.relative_position_bias_table",),
    "transformer.blocks.#.scale1.gamma": ("blocks.#.gamma_1",),
    "transformer.blocks.#.scale2.gamma": ("blocks.#.gamma_2",),
    "transformer.blocks.#.attn.qkv.weight": ("blocks.#.attn.qkv.weight",),
    "transformer.blocks.#.attn.q_bias": ("blocks.#.attn.q_bias",),
    "transformer.blocks.#.attn.v_bias": ("blocks.#.attn.v_bias",),
    **weight_and_bias("transformer.norm", "norm"),
}
for _part in ("norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2"):
    BACKBONE |= weight_and_bias(f"transformer.blocks.#.{_part}", f"blocks.#.{_part}")
HEAD = {"mask_token": ("mask_token",), **weight_and_bias("decoder.proj", "lm_head")}
STUDENT = HEAD | prefixed(BACKBONE, "backbone.")
DERIVED = re.compile(r"(^|\.)relative_position_index$")  # a function of the grid


def convert(file: dict[str, Any], path: str, whole: bool = True) -> Content:
    """A pre-trained `Data2Vec`, see `convert_official`."""
    options = as_options(file.get("args"))
    if options is None:
        raise UserError(f"{path} has no 'args', which say what it was trained to predict")
    student = named_tensors(file["model"], path)
    alone = file.get("model_ema") is None
    teacher = Weights(student) if alone else named_tensors(file["model_ema"], f"{path} (model_ema)")
    tree = image_tree(student, options, path)
    with torch.device("meta"):
        model: Objective = build(tree)
    converted: State = {}
    rows: list[Row] = []
    for prefix, part, theirs, table, name in (
        ("student.", model.student, student, STUDENT, path),
        ("teacher.", model.teacher, teacher, BACKBONE, f"{path} (model_ema)"),
    ):
        share_only_table(theirs)
        needed = needed_of(part.state_dict(), theirs, table, whole or part is model.teacher)
        state = to_ours(needed, theirs, table, name, rows, prefix)
        converted |= {prefix + ours: tensor for ours, tensor in state.items()}
        if part is model.teacher:
            for unused in set(theirs) & {"mask_token", "lm_head.weight", "lm_head.bias"}:
                drop(theirs, unused, "the teacher has no use for it", rows)
        drop_index(theirs, name, rows, model.encoder)
        if theirs:
            raise UserError(f"{name}: weight {min(theirs)!r} is not part of data2vec 1.0 for images")
    kind = "data2vec 1.0 for images, pre-trained"
    if alone:
        rank_zero_info(f"{path} has no teacher ('model_ema'): the teacher starts as a copy of the student")
        kind += ", without teacher"
    return Content(tree, converted, kind, NON_COMMERCIAL, rows)


def drop_index(rest: State, path: str, rows: list[Row], encoder: Encoder) -> None:
    """Drop which row of a table of relative positions each pair of patches has: that follows from the grid.

    Raises:
        ValueError: it is that of another grid.
    """
    assert isinstance(encoder, ImageEncoder)
    for name in [name for name in rest if DERIVED.search(name)]:
        if not is_index_of(encoder.grid, rest[name]):
            raise UserError(f"{path}: {name!r} is not that of {encoder.grid[0]}x{encoder.grid[1]} patches")
        drop(rest, name, "follows from the grid", rows)


def state_dict(model: Objective) -> dict[str, State]:
    """`{"model": ..., "model_ema": ...}`, see `official_state_dict`.

    The official teacher also averages mask token and head, which it never uses and ours does not have; the student's stand
    in their place, so that the official code loads the file.
    """
    student = to_theirs(model.student.state_dict(), STUDENT)
    shared = {name: student[name] for names in HEAD.values() for name in names}
    teacher = {**to_theirs(model.teacher.state_dict(), BACKBONE), **shared}
    assert isinstance(model.encoder, ImageEncoder)
    index = relative_position_index(model.encoder.grid)
    for state in (student, teacher):
        for name in [name for name in state if name.endswith("relative_position_bias_table")]:
            state[name.replace("relative_position_bias_table", "relative_position_index")] = index.clone()
    return {"model": student, "model_ema": teacher}


def share_only_table(state: State) -> None:
    """Calls the bias table of a model's only block a shared one, which computes the same and is how ours holds it."""
    only, shared = "blocks.0.attn.relative_position_bias_table", "rel_pos_bias.relative_position_bias_table"
    if only in state and depth_of(state, "blocks.") == 1:
        state[shared] = state.pop(only)


def backbone_of(
    state: Weights, options: dict[str, Any], path: str, final_norm: bool = True, finetuned: bool = False
) -> Backbone:
    """The network, without weights, that the tensors' shapes and the trainer's options describe.

    Pictures are normalised as the option `imagenet_default_mean_and_std` says (`beit/datasets.py`): ImageNet's values, or .5.
    A file without it was pre-trained with it and fine-tuned without it, as the released commands do (`beit/README.md`).

    Args:
        final_norm: whether it ends with a norm; fine-tuned networks that average patches do not.
        finetuned: whether `run_class_finetuning.py` wrote the file.

    Raises:
        ValueError: they describe none.
    """
    if "patch_embed.proj.weight" not in state:
        raise UserError(f"{path}: no patch embedding among its weights, so not an image model of data2vec 1.0")
    dim, channels, *patch = state.sizes("patch_embed.proj.weight", 4)
    depth = depth_of(state, "blocks.")
    if depth == 0:
        raise UserError(f"{path}: no first block among its weights")
    names = [name for name in state if name.endswith("relative_position_bias_table")]
    tables = [state.sizes(name, 2) for name in names]
    grid = _grid(state, tables, options, (patch[0], patch[1]))
    num_heads = tables[0][1] if tables else int(option(options, "num_heads", default=max(1, dim // 64)))
    refuse_contradictions(options, {"num_heads": num_heads, "input_size": grid[0] * patch[0]})
    imagenet = option(options, "imagenet_default_mean_and_std", default=not finetuned)
    mean, std = (IMAGENET if imagenet else INCEPTION).of_channels(channels)
    with torch.device("meta"):  # only the arguments are wanted
        encoder = ImageEncoder(
            image_size=_square(grid[0] * patch[0], grid[1] * patch[1]),
            patch_size=_square(patch[0], patch[1]),
            in_channels=channels,
            dim=dim,
            positions="learned" if "pos_embed" in state else "none",
            mean=mean,
            std=std,
        )
        transformer = Transformer(
            dim=dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=state.sizes("blocks.0.mlp.fc1.weight", 2)[0] / dim,
            qkv_bias="qv" if "blocks.0.attn.q_bias" in state else "none",
            layer_scale=(option(options, "layer_scale_init_value", default=0.0) or 1e-4)
            if "blocks.0.gamma_1" in state
            else None,
            dropout=float(option(options, "drop", default=0.0)),  # after attention, after the FFN and of the input
            input_dropout=float(option(options, "drop", default=0.0)),
            attention_dropout=float(option(options, "attn_drop_rate", default=0.0)),
            drop_path=float(option(options, "drop_path", default=0.0)),
            final_norm=final_norm,
            position_bias=RelativePositionBias(grid, num_heads, len(tables)) if tables else None,
        )
        return Backbone(encoder, transformer)


def image_tree(state: Weights, options: dict[str, Any], path: str) -> Tree:
    backbone = backbone_of(state, options, path)
    depth = backbone.transformer.depth
    with torch.device("meta"):  # only the arguments are wanted
        student = MaskTokenStudent(backbone, LinearDecoder(backbone.dim))
    ema_teacher = EMATeacher(
        decay_start=float(option(options, "ema_decay_init", "decay_init", default=0.999)),
        decay_end=float(option(options, "ema_decay", "decay", default=0.9998)),
        anneal_steps=int(option(options, "ema_start_at", default=25000)),
        first_update=0,
    )
    lr = float(option(options, "lr", default=5e-4))
    optimization = Optimization(
        lr=lr,
        betas=tuple(option(options, "opt_betas", default=(0.9, 0.999))),
        weight_decay=float(option(options, "weight_decay", default=0.05)),
        warmup=option(options, "warmup_epochs", default=10.0) / max(1.0, option(options, "epochs", default=800.0)),
        final_lr=min(lr, float(option(options, "min_lr", default=1e-5))),
    )
    arguments = {
        "student": student,
        "targets": _targets(options, depth, path),
        "loss": _loss(options, path),
        "ema_teacher": ema_teacher,
        "optimization": optimization,
        "teacher_scope": "backbone",
    }
    return {"class_path": "d2v_lightning.Data2Vec", "init_args": plain(arguments)}


def _square(height: int, width: int) -> int | tuple[int, int]:
    return height if height == width else (height, width)


def _grid(
    state: Weights, tables: list[tuple[int, ...]], options: dict[str, Any], patch: tuple[int, int]
) -> tuple[int, int]:
    """Patches (down, across): the one grid whose table of relative positions is the file's, square where that is open."""
    index = next((tensor for name, tensor in state.items() if DERIVED.search(name)), None)
    if index is not None and index.dim() == 2 and len(index) > 1:
        patches = index.shape[0] - 1
        for height in range(1, patches + 1):
            grid = (height, patches // height)
            if patches % height == 0 and is_index_of(grid, index):
                return grid
    if tables:
        side = (math.isqrt(max(0, tables[0][0] - 3)) + 1) // 2
    elif "pos_embed" in state:
        side = math.isqrt(state.sizes("pos_embed", 3)[1] - 1)
    else:
        size = int(option(options, "input_size", default=224))
        side, _ = patch_grid((size, size), (patch[0], patch[0]))
    return side, side


def _targets(options: dict[str, Any], depth: int, path: str) -> Targets:
    layers = _target_layers(options, depth, path)
    top = list(range(depth - len(layers), depth))
    each: list[Norm] = []
    if options.get("target_batch_norm"):
        each.append("batch")
    if options.get("target_instance_norm"):
        each.append("instance")
    if options.get("target_layer_norm_last", not options.get("no_target_layer_norm_last", False)):
        each.append("layer")
    after: list[Norm] = []
    if options.get("post_target_instance_norm"):
        after.append("instance")
    if options.get("post_target_layer_norm"):
        after.append("layer")
    return Targets(
        average_top_k_layers=len(layers) if sorted(layers) == top else layers,
        layer_results="ffn" if options.get("layer_results") == "fc" else "block",
        norm_each=each,
        norm_after=after,
    )


def _target_layers(options: dict[str, Any], depth: int, path: str) -> list[int]:
    """Blocks to average, 0-based: a list, or the text of one as on the command line."""
    given = options.get("target_layers")
    numbers = re.findall(r"-?\d+", given) if isinstance(given, str) else given
    if not isinstance(numbers, (list, tuple)) or not numbers:
        raise UserError(
            f"{path}: its option target_layers is {given!r}: the blocks to average are needed, as in [6, 7, 8]"
        )
    layers = [int(number) for number in numbers]
    if not all(-depth <= layer < depth for layer in layers):
        raise UserError(f"{path}: its option target_layers is {given!r}, but there are blocks 0 to {depth - 1} only")
    return [layer % depth for layer in layers]


def _loss(options: dict[str, Any], path: str) -> RegressionLoss:
    if option(options, "var_w0", default=0.0) > 0:
        raise UserError(f"{path} was trained with a variance loss (var_w0), which no released model uses")
    scale = float(option(options, "loss_scale", default=-1))
    beta = 0.0 if options.get("l2_loss") else float(option(options, "l1_beta", default=0.12))
    return RegressionLoss(beta=beta, over_width="mean", scale=1.0 if scale == -1 else scale)
