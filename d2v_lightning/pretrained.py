"""Pre-trained weights from any file we know, as one thing: a constructor tree and a state dict of ours."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from d2v_lightning.backbone import Backbone
from d2v_lightning.checkpoints.official import convert_official, is_official
from d2v_lightning.configurable import Tree, build, refuse_foreign
from d2v_lightning.position import resize_position_embedding, resize_relative_position_table
from d2v_lightning.saving import check_format, load_exactly, read_tensors


class Pretrained(NamedTuple):
    """A file's content: `tree` of the module it holds, its `state` dict, and the `path` that messages name."""

    tree: Tree
    state: dict[str, Tensor]
    path: str

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The weights below a prefix, the prefix cut off.

        Raises:
            ValueError: there are none.
        """
        part = {name[len(prefix) :]: tensor for name, tensor in self.state.items() if name.startswith(prefix)}
        if not part:
            raise ValueError(f"{self.path} holds a {self.tree['class_path']}, which has no {prefix.rstrip('.')}")
        return part


def read_pretrained(path: str | Path) -> Pretrained:
    """Read one of our checkpoints, or a pre-training file of Meta's. Nothing in the file is executed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, of no known layout, or names a class that is not this project's.
    """
    file = read_tensors(path)
    if is_official(file):
        return Pretrained(*convert_official(file, str(path)), str(path))
    check_format(file, str(path))
    refuse_foreign(file["hyper_parameters"])
    return Pretrained(file["hyper_parameters"], file["state_dict"], str(path))


def load_backbone(
    path: str | Path,
    part: Literal["student", "teacher"] = "student",
    image_size: int | tuple[int, int] | None = None,
    drop_path: float | None = None,
    gradient_checkpointing: bool = False,
    trunk: dict[str, Any] | None = None,
) -> Backbone:
    """The backbone in a pre-trained or fine-tuned file, ready for another task.

    Args:
        path: see `read_pretrained`, or a Hugging Face directory of a Data2VecVision model.
        part: of a pre-training file. Published fine-tuning of images starts from the student.
        image_size: pixels of the new task, (height, width) or one number; tables of positions are resized to it.
        drop_path: stochastic depth of the new task; None keeps the file's.
        gradient_checkpointing: see `Transformer`.
        trunk: further arguments of `Transformer` for the new task, such as its dropouts.

    Raises:
        FileNotFoundError, ValueError: see `read_pretrained`; or the file has no such part.
    """
    if part not in ("student", "teacher"):
        raise ValueError(f"part is {part!r}: choose 'student' or 'teacher'")
    if Path(path).is_dir():
        from d2v_lightning.checkpoints.huggingface import load_huggingface

        found = load_huggingface(str(path))
        tree, state = found.config, found.state_dict()
    else:
        tree, state = _backbone_of(read_pretrained(path), part)
    tree = copy.deepcopy(tree)
    arguments, encoder = tree["init_args"]["transformer"]["init_args"], tree["init_args"]["encoder"]["init_args"]
    arguments |= {"gradient_checkpointing": gradient_checkpointing, **(trunk or {})}
    if drop_path is not None:
        arguments["drop_path"] = drop_path
    if image_size is not None:
        state = _resized(
            state, encoder, arguments, (image_size, image_size) if isinstance(image_size, int) else image_size
        )
    backbone: Backbone = build(tree)
    load_exactly(backbone, state, str(path))
    return backbone


def load_mask_token(path: str | Path) -> Tensor | None:
    """The vector (D,) that stood for hidden tokens in pre-training; None where the file has none (2.0, text).

    Raises:
        FileNotFoundError, ValueError: see `read_pretrained`.
    """
    if Path(path).is_dir():
        from d2v_lightning.checkpoints.huggingface import read_huggingface

        head = read_huggingface(path).head
        return next((tensor for name, tensor in head.items() if name.endswith("masked_spec_embed")), None)
    state = read_pretrained(path).state
    token = state.get("student.mask_token", state.get("mask_token"))
    return None if token is None else token.flatten()


def _backbone_of(pretrained: Pretrained, part: Literal["student", "teacher"]) -> tuple[Tree, dict[str, Tensor]]:
    arguments = pretrained.tree["init_args"]
    if "student" not in arguments and "backbone" not in arguments:
        raise ValueError(f"{pretrained.path} holds a {pretrained.tree['class_path']}, which has no backbone")
    if "student" not in arguments:
        rank_zero_info(f"backbone from {pretrained.path}, a fine-tuned {pretrained.tree['class_path']}")
        return arguments["backbone"], pretrained.part("backbone.")
    rank_zero_info(f"backbone from {pretrained.path}, the {part}")
    state = pretrained.part("student.backbone.")
    if part == "teacher":  # what the teacher does not hold it shares with the student
        teacher = pretrained.part("teacher.")
        state |= {
            name.replace("position.", "encoder.position.", 1) if name.startswith("position.") else name: tensor
            for name, tensor in teacher.items()
        }
    return arguments["student"]["init_args"]["backbone"], state


def _resized(state: dict[str, Tensor], encoder: Tree, trunk: Tree, image_size: tuple[int, int]) -> dict[str, Tensor]:
    """The state for another image size; `encoder` and `trunk`, the arguments of both, are changed to match."""
    patch, old = (
        size if isinstance(size, list) else [size] * 2 for size in (encoder["patch_size"], encoder["image_size"])
    )
    old_grid = (old[0] // patch[0], old[1] // patch[1])
    new_grid = (image_size[0] // patch[0], image_size[1] // patch[1])
    if min(new_grid) < 1:
        raise ValueError(f"image_size is {image_size}, which holds no patch of {patch[0]}x{patch[1]} pixels")
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
