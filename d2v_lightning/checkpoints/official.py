"""Meta's released data2vec files, in and out. Images 1.0: `{"model", "model_ema", "args"}` as BEiT's trainer wrote them.

Shapes, heads and grids are read off the tensors, the method's options off `args`; nothing in the file is executed.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from d2v_lightning.backbone import Backbone
from d2v_lightning.callbacks.ema_teacher import EMATeacher
from d2v_lightning.configurable import Tree, build, plain
from d2v_lightning.decoder import LinearDecoder
from d2v_lightning.encoders.image import ImageEncoder
from d2v_lightning.losses import RegressionLoss
from d2v_lightning.optim import Optimization
from d2v_lightning.position import RelativePositionBias, relative_position_index
from d2v_lightning.saving import load_exactly, read_tensors
from d2v_lightning.student import MaskTokenStudent
from d2v_lightning.targets import Norm, Targets
from d2v_lightning.transformer import Transformer

if TYPE_CHECKING:
    from d2v_lightning.module import Data2Vec

State = dict[str, Tensor]

# Official name -> ours; "#" is a block's number. Used in both directions.
IMAGE_BACKBONE = {
    "cls_token": "encoder.position.class_token",
    "pos_embed": "encoder.position.embedding",
    "patch_embed.proj.weight": "encoder.patch_embed.weight",
    "patch_embed.proj.bias": "encoder.patch_embed.bias",
    "rel_pos_bias.relative_position_bias_table": "transformer.position_bias.shared_table",
    "blocks.#.attn.relative_position_bias_table": "transformer.position_bias.block_tables.#",
    "blocks.#.gamma_1": "transformer.blocks.#.scale1.gamma",
    "blocks.#.gamma_2": "transformer.blocks.#.scale2.gamma",
    "norm.weight": "transformer.norm.weight",
    "norm.bias": "transformer.norm.bias",
} | {
    f"blocks.#.{name}": f"transformer.blocks.#.{name}"
    for name in (
        *(f"norm{n}.{part}" for n in (1, 2) for part in ("weight", "bias")),
        *("attn.qkv.weight", "attn.q_bias", "attn.v_bias", "attn.proj.weight", "attn.proj.bias"),
        *(f"mlp.fc{n}.{part}" for n in (1, 2) for part in ("weight", "bias")),
    )
}
IMAGE_STUDENT = {
    "mask_token": "mask_token",
    "lm_head.weight": "decoder.proj.weight",
    "lm_head.bias": "decoder.proj.bias",
}
IMAGE_DERIVED = re.compile(r"(^|\.)relative_position_index$")  # a function of the grid


def load_official(path: str | Path) -> Data2Vec:
    """A released (or self-trained) pre-training file as a `Data2Vec` that goes on where the file stands.

    Args:
        path: file in the official layout, 1.0 image: `{"model": ..., "model_ema": ..., "args": Namespace}`.

    Returns:
        Student, teacher, targets, loss and EMA as the file's options say. Without `model_ema` the teacher is a copy of
        the student, and that is said.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, of another layout, or its tensors or options do not fit together.
    """
    tree, state = convert_official(read_tensors(path), str(path))
    model: Data2Vec = build(tree)
    load_exactly(model, state, str(path))
    return model


def is_official(file: Any) -> bool:
    """Whether a loaded file is in a layout that `convert_official` knows."""
    if not isinstance(file, dict) or not isinstance(file.get("model"), Mapping):
        return False
    return isinstance(file.get("args"), (argparse.Namespace, dict))


def convert_official(file: Any, path: str) -> tuple[Tree, State]:
    """An official file's content as ours: the constructor tree of a `Data2Vec`, and its state dict.

    Raises:
        ValueError: as `load_official`; `path` is what the message calls the file.
    """
    if not is_official(file):
        raise ValueError(f"{path} is not in the layout of data2vec 1.0 images: it needs the entries 'model' and 'args'")
    state = _weights(file["model"], path)
    if "patch_embed.proj.weight" not in state:
        raise ValueError(f"{path}: no patch embedding among its weights, so not an image model of data2vec 1.0")
    options = vars(file["args"]) if isinstance(file["args"], argparse.Namespace) else file["args"]
    teacher = state
    if file.get("model_ema") is None:
        rank_zero_info(f"{path} has no teacher ('model_ema'): the teacher starts as a copy of the student")
    else:
        teacher = _weights(file["model_ema"], f"{path} (model_ema)")
    student = rename({name: state[name] for name in IMAGE_STUDENT if name in state}, IMAGE_STUDENT, path)
    converted = {
        **{f"student.{name}": tensor for name, tensor in student.items()},
        **{f"student.backbone.{name}": tensor for name, tensor in _backbone(state, path).items()},
        **{f"teacher.{name}": tensor for name, tensor in _backbone(teacher, f"{path} (model_ema)").items()},
    }
    return _image_tree(state, options, path), converted


def official_state_dict(model: Data2Vec) -> dict[str, State]:
    """Student and teacher under the official names: `{"model": ..., "model_ema": ...}`.

    The official teacher also averages mask token and head, which it never uses and ours does not have; the student's stand
    in their place, so that the official code loads the file.
    """
    student = model.student.state_dict()
    names = {**_flip(IMAGE_BACKBONE, "backbone."), **_flip(IMAGE_STUDENT)}
    official = _officially(student, names)
    shared = {name: official[name] for name in IMAGE_STUDENT}
    teacher = {**_officially(model.teacher.state_dict(), _flip(IMAGE_BACKBONE)), **shared}
    index = relative_position_index(model.backbone.encoder.grid)
    for state in (official, teacher):
        for name in [name for name in state if name.endswith("relative_position_bias_table")]:
            state[name.replace("relative_position_bias_table", "relative_position_index")] = index.clone()
    return {"model": official, "model_ema": teacher}


def rename(state: Mapping[str, Tensor], names: Mapping[str, str], path: str) -> State:
    """Tensors under new names, by a table in which "#" stands for a block's number.

    Raises:
        ValueError: a tensor is not in the table, or holds NaN or infinity.
    """
    renamed = {}
    for name, tensor in state.items():
        if IMAGE_DERIVED.search(name):
            continue
        number = re.search(r"(?<=\.)\d+(?=\.)", name)
        pattern = name if number is None else name.replace(f".{number[0]}.", ".#.", 1)
        if pattern not in names:
            raise ValueError(f"{path}: weight {name!r} is not part of data2vec 1.0 for images")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: weight {name!r} holds NaN or infinity")
        renamed[names[pattern].replace("#", number[0] if number else "#")] = tensor
    return renamed


def _weights(state: Any, path: str) -> State:
    """A file's weights, without the "module." that a model saved inside DistributedDataParallel carries before each name."""
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise ValueError(f"{path} does not hold named tensors only")
    wrapped = all(name.startswith("module.") for name in state)
    return {name.removeprefix("module.") if wrapped else name: tensor for name, tensor in state.items()}


def _backbone(state: Mapping[str, Tensor], path: str) -> State:
    return rename({name: tensor for name, tensor in state.items() if name not in IMAGE_STUDENT}, IMAGE_BACKBONE, path)


def _flip(names: Mapping[str, str], prefix: str = "") -> dict[str, str]:
    return {prefix + ours: official for official, ours in names.items()}


def _officially(state: Mapping[str, Tensor], names: Mapping[str, str]) -> State:
    official = {}
    for name, tensor in state.items():
        number = re.search(r"(?:blocks|block_tables)\.(\d+)", name)
        pattern = name if number is None else name.replace(number[0], number[0].replace(number[1], "#"), 1)
        official[names[pattern].replace("#", number[1] if number else "#")] = tensor.detach().clone()
    return official


def _image_tree(state: State, options: dict[str, Any], path: str) -> Tree:
    """The module that the tensors' shapes and the trainer's options describe."""
    dim, channels, *patch = state["patch_embed.proj.weight"].shape
    depth = 1 + max((int(name.split(".")[1]) for name in state if name.startswith("blocks.")), default=-1)
    if depth == 0 or "blocks.0.mlp.fc1.weight" not in state:
        raise ValueError(f"{path}: no first block among its weights")
    if len(patch) != 2:
        raise ValueError(
            f"{path}: patch_embed.proj.weight has shape {(dim, channels, *patch)}, expected four dimensions"
        )
    tables = [tensor for name, tensor in state.items() if name.endswith("relative_position_bias_table")]
    grid = _grid(state, tables, options, (patch[0], patch[1]))
    num_heads = tables[0].shape[1] if tables else int(options.get("num_heads") or dim // 64)
    with torch.device("meta"):  # only the arguments are wanted
        encoder = ImageEncoder(
            image_size=(grid[0] * patch[0], grid[1] * patch[1]),
            patch_size=(patch[0], patch[1]),
            in_channels=channels,
            dim=dim,
            learned_positions="pos_embed" in state,
        )
        transformer = Transformer(
            dim=dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=state["blocks.0.mlp.fc1.weight"].shape[0] / dim,
            qkv_bias="qv" if "blocks.0.attn.q_bias" in state else "none",
            layer_scale=(options.get("layer_scale_init_value") or 1e-4) if "blocks.0.gamma_1" in state else None,
            attention_dropout=float(options.get("attn_drop_rate") or 0.0),
            drop_path=float(options.get("drop_path") or 0.0),
            position_bias=RelativePositionBias(grid, num_heads, len(tables)) if tables else None,
        )
        student = MaskTokenStudent(Backbone(encoder, transformer), LinearDecoder(dim))
    ema_teacher = EMATeacher(
        decay_start=float(_option(options, "ema_decay_init", "decay_init", default=0.999)),
        decay_end=float(_option(options, "ema_decay", "decay", default=0.9998)),
        anneal_steps=int(_option(options, "ema_start_at", default=25000)),
        first_update=0,
    )
    optimization = Optimization(
        lr=float(_option(options, "lr", default=5e-4)),
        betas=tuple(_option(options, "opt_betas", default=(0.9, 0.999))),
        weight_decay=float(_option(options, "weight_decay", default=0.05)),
    )
    arguments = {
        "student": student,
        "targets": _targets(options, depth, path),
        "loss": _loss(options, path),
        "ema_teacher": ema_teacher,
        "optimization": optimization,
        "teacher_scope": "backbone",
    }
    return {"class_path": "d2v_lightning.module.Data2Vec", "init_args": plain(arguments)}


def _grid(state: State, tables: list[Tensor], options: dict[str, Any], patch: tuple[int, int]) -> tuple[int, int]:
    """Patches (down, across): the one grid whose table of relative positions is the file's, square where that is open."""
    index = next((tensor for name, tensor in state.items() if IMAGE_DERIVED.search(name)), None)
    if index is not None:
        patches = index.shape[0] - 1
        for height in range(1, patches + 1):
            grid = (height, patches // height)
            if patches % height == 0 and torch.equal(relative_position_index(grid), index.long()):
                return grid
    if tables:
        side = (math.isqrt(tables[0].shape[0] - 3) + 1) // 2
    elif "pos_embed" in state:
        side = math.isqrt(state["pos_embed"].shape[1] - 1)
    else:
        side = int(_option(options, "input_size", default=224)) // patch[0]
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
        raise ValueError(
            f"{path}: its option target_layers is {given!r}: the blocks to average are needed, as in [6, 7, 8]"
        )
    layers = [int(number) for number in numbers]
    if not all(-depth <= layer < depth for layer in layers):
        raise ValueError(f"{path}: its option target_layers is {given!r}, but there are blocks 0 to {depth - 1} only")
    return [layer % depth for layer in layers]


def _loss(options: dict[str, Any], path: str) -> RegressionLoss:
    if (options.get("var_w0") or 0) > 0:
        raise ValueError(f"{path} was trained with a variance loss (var_w0), which no released model uses")
    scale = float(_option(options, "loss_scale", default=-1))
    beta = 0.0 if options.get("l2_loss") else float(_option(options, "l1_beta", default=0.12))
    return RegressionLoss(beta=beta, over_width="mean", scale=1.0 if scale == -1 else scale)


def _option(options: dict[str, Any], *names: str, default: Any) -> Any:
    """The first of these options that is set: the command line and the training loop spell some differently."""
    return next((options[name] for name in names if options.get(name) is not None), default)
