"""The backbone in a file of any kind, for another task: its part, its size, its regularisation."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from d2v_lightning.checkpoints.content import Content
from d2v_lightning.checkpoints.huggingface import NO_PART_OF_A_BACKBONE
from d2v_lightning.checkpoints.own import load_exactly
from d2v_lightning.checkpoints.pretrained import read_pretrained
from d2v_lightning.checkpoints.tables import State
from d2v_lightning.configurable import Tree, build, own_class
from d2v_lightning.flavour import rank_zero_info
from d2v_lightning.nn.backbone import Backbone
from d2v_lightning.nn.encoders.image import patch_grid
from d2v_lightning.nn.position import resize_position_embedding, resize_relative_position_table
from d2v_lightning.support.errors import UserError


def load_backbone(
    path: str | Path | Content,
    part: Literal["student", "teacher"] = "student",
    image_size: int | tuple[int, int] | None = None,
    drop_path: float | None = None,
    gradient_checkpointing: bool = False,
    trunk: dict[str, Any] | None = None,
    modality: str | None = None,
) -> Backbone:
    """The backbone in a pre-trained or fine-tuned file, ready for another task.

    Args:
        path: see `read_pretrained`, or what it gave.
        part: of a pre-training file. Published fine-tuning of images starts from the student.
        image_size: pixels of the new task, (height, width) or one number; tables of positions are resized to it.
        drop_path: stochastic depth of the new task; None keeps the file's.
        gradient_checkpointing: see `Transformer`.
        trunk: further arguments of `Transformer` for the new task, such as its dropouts.
        modality: of a file that was pre-trained on several, which one.

    Raises:
        FileNotFoundError, ValueError: see `read_pretrained`; or the file has no such part or modality.
    """
    if part not in ("student", "teacher"):
        raise UserError(f"part is {part!r}: choose 'student' or 'teacher'")
    found = path if isinstance(path, Content) else read_pretrained(path, whole=False)
    found = found.of_modality(modality)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    tree, state = backbone_part(found, part, size)
    arguments = tree["init_args"]["transformer"]["init_args"]
    arguments |= {"gradient_checkpointing": gradient_checkpointing, **(trunk or {})}
    if drop_path is not None:
        arguments["drop_path"] = drop_path
    backbone: Backbone = build(tree)
    load_exactly(backbone, state, found.path)
    backbone.licence, backbone.tokenizer = found.licence, found.tokenizer
    return backbone


def regularised(
    dropout: float, attention_dropout: float, activation_dropout: float, layer_drop: float
) -> dict[str, float]:
    """Arguments of the trunk while it is fine-tuned, for `load_backbone`. `dropout` is also that of the trunk's input."""
    return {
        "dropout": dropout,
        "input_dropout": dropout,
        "attention_dropout": attention_dropout,
        "activation_dropout": activation_dropout,
        "layer_drop": layer_drop,
    }


def load_mask_token(path: str | Path, modality: str | None = None) -> Tensor | None:
    """The vector (D,) that stood for hidden tokens in pre-training; None where the file has none (2.0, text).

    Args:
        path, modality: see `load_backbone`.

    Raises:
        FileNotFoundError, ValueError: see `read_pretrained`.
    """
    state = read_pretrained(path, whole=False).of_modality(modality).state
    token = state.get("student.mask_token", state.get("mask_token"))
    return None if token is None else token.flatten()


def load_normalize(path: str | Path, modality: str | None = None) -> bool | None:
    """Whether a speech model heard clips of mean 0 and variance 1; None where its file does not say.

    Args:
        path, modality: see `load_backbone`.

    Raises:
        FileNotFoundError, ValueError: see `read_pretrained`.
    """
    return read_pretrained(path, whole=False).of_modality(modality).takes_normalized


def backbone_part(
    found: Content, part: Literal["student", "teacher"], image_size: tuple[int, int] | None = None
) -> tuple[Tree, State]:
    """Tree and weights of a backbone, for another image size where one is given.

    Raises:
        ValueError: the file has no such part, or its inputs are no images.
    """
    tree, state = _backbone_of(found, part)
    tree = copy.deepcopy(tree)
    if image_size is not None:
        encoder, trunk = (tree["init_args"][name]["init_args"] for name in ("encoder", "transformer"))
        if "patch_size" not in encoder:
            raise UserError(f"image_size is {image_size}, but {found.path} is no model of images")
        state = _resized(state, encoder, trunk, image_size)
    return tree, state


def _backbone_of(found: Content, part: Literal["student", "teacher"]) -> tuple[Tree, State]:
    arguments = found.tree["init_args"]
    if issubclass(own_class(found.tree["class_path"]), Backbone):
        if left_out := sorted(row.theirs for row in found.rows if row.ours == NO_PART_OF_A_BACKBONE):
            rank_zero_info(f"{found.path}: not part of a backbone and left out: {', '.join(left_out)}")
        return found.tree, {name: found.state[name] for name in found.state if name != "mask_token"}
    if "student" not in arguments and "backbone" not in arguments:
        raise UserError(f"{found.path} holds a {found.tree['class_path']}, which has no backbone")
    if "student" not in arguments:
        rank_zero_info(f"backbone from {found.path}, a fine-tuned {found.tree['class_path']}")
        return arguments["backbone"], found.part("backbone.")
    rank_zero_info(f"backbone from {found.path}, the {part}")
    state = found.part("student.backbone.")
    if part == "teacher":  # what the teacher does not hold it shares with the student
        teacher = found.part("teacher.")
        state |= {
            name.replace("position.", "encoder.position.", 1) if name.startswith("position.") else name: tensor
            for name, tensor in teacher.items()
        }
    return arguments["student"]["init_args"]["backbone"], state


def _resized(state: State, encoder: Tree, trunk: Tree, image_size: tuple[int, int]) -> State:
    """The state for another image size; `encoder` and `trunk`, the arguments of both, are changed to match."""
    patch, old = (
        size if isinstance(size, list) else [size] * 2 for size in (encoder["patch_size"], encoder["image_size"])
    )
    if image_size[0] < patch[0] or image_size[1] < patch[1]:
        raise UserError(f"image_size is {image_size}, which holds no patch of {patch[0]}x{patch[1]} pixels")
    old_grid, new_grid = (patch_grid((size[0], size[1]), (patch[0], patch[1])) for size in (old, image_size))
    encoder["image_size"] = list(image_size)
    if trunk["position_bias"] is not None:
        trunk["position_bias"]["init_args"]["grid"] = list(new_grid)
    resized = dict(state)
    for name, tensor in state.items():
        if name.startswith("transformer.position_bias."):
            resized[name] = resize_relative_position_table(tensor, old_grid, new_grid)
        elif name == "encoder.position.embedding":
            resized[name] = resize_position_embedding(tensor, old_grid, new_grid)
    return resized
