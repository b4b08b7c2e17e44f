"""Data2VecVision of the `transformers` library, and BEiT where it is the same network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from d2v_lightning.checkpoints.labels import labels_of
from d2v_lightning.checkpoints.tables import Names, State, weight_and_bias
from d2v_lightning.nn.backbone import Backbone
from d2v_lightning.nn.encoders.image import ImageEncoder, patch_grid
from d2v_lightning.nn.position import Alibi, RelativePositionBias, is_index_of
from d2v_lightning.nn.transformer import Transformer
from d2v_lightning.support.errors import UserError

TYPES = {"data2vec-vision": "Data2VecVisionConfig", "beit": "BeitConfig"}
PREFIXES = ("data2vec_vision.", "beit.")
DERIVED = re.compile(r"(^|\.)relative_position_index$")  # a function of the grid
HEAD = re.compile(r"^(embeddings\.mask_token|(pooler|classifier|lm_head|decode_head|auxiliary_head|fpn\d)\..*)$")
HEAD_NORM = re.compile(r"^layernorm\.(weight|bias)$")  # of a head, where the model itself ends without a norm

_BLOCK, _THEIRS = "transformer.blocks.#.", "encoder.layer.#."
_TABLE = "relative_position_bias.relative_position_bias_table"
NAMES: Names = {
    "encoder.position.class_token": ("embeddings.cls_token",),
    "encoder.position.embedding": ("embeddings.position_embeddings",),
    "encoder.patch_embed.weight": ("embeddings.patch_embeddings.projection.weight",),
    "encoder.patch_embed.bias": ("embeddings.patch_embeddings.projection.bias",),
    "transformer.position_bias.shared_table": (f"encoder.{_TABLE}",),
    "transformer.position_bias.block_tables.#": (f"{_THEIRS}attention.attention.{_TABLE}",),
    f"{_BLOCK}attn.qkv.weight": tuple(f"{_THEIRS}attention.attention.{x}.weight" for x in ("query", "key", "value")),
    f"{_BLOCK}attn.q_bias": (f"{_THEIRS}attention.attention.query.bias",),
    f"{_BLOCK}attn.v_bias": (f"{_THEIRS}attention.attention.value.bias",),
    f"{_BLOCK}scale1.gamma": (f"{_THEIRS}lambda_1",),
    f"{_BLOCK}scale2.gamma": (f"{_THEIRS}lambda_2",),
    **{
        f"{ours}.{part}": (f"{theirs}.{part}",)
        for ours, theirs in (
            (f"{_BLOCK}norm1", f"{_THEIRS}layernorm_before"),
            (f"{_BLOCK}attn.proj", f"{_THEIRS}attention.output.dense"),
            (f"{_BLOCK}norm2", f"{_THEIRS}layernorm_after"),
            (f"{_BLOCK}mlp.fc1", f"{_THEIRS}intermediate.dense"),
            (f"{_BLOCK}mlp.fc2", f"{_THEIRS}output.dense"),
            ("transformer.norm", "layernorm"),
        )
        for part in ("weight", "bias")
    },
}


def names(backbone: Backbone) -> Names:
    """Our names and theirs."""
    return NAMES


def is_head(weight: str, inside: bool, config: Any) -> bool:
    """Whether a weight, without the model's prefix, belongs to a head; `inside` where it had the prefix."""
    return bool(HEAD.match(weight) or (HEAD_NORM.match(weight) and (not inside or config.use_mean_pooling)))


def follows(weight: str, tensor: Tensor, config: Any) -> bool:
    """Whether the row of a table of relative positions that each pair of patches has in older files is that of the grid."""
    pixels, patch = ((size, size) if isinstance(size, int) else size for size in (config.image_size, config.patch_size))
    return is_index_of(patch_grid((pixels[0], pixels[1]), (patch[0], patch[1])), tensor)


def adjust(state: State, backbone: Backbone) -> State:
    """Their weights as ours compute with them: bias tables of grids that are not square, or of an only block."""
    assert isinstance(backbone.encoder, ImageEncoder)
    only = f"encoder.layer.0.attention.attention.{_TABLE}"
    if only in state and backbone.transformer.depth == 1:  # a table shared by one block computes the same
        state[f"encoder.{_TABLE}"] = state.pop(only)
    grid, own = backbone.encoder.grid, backbone.state_dict()
    for name in [name for name in state if name.endswith(_TABLE)]:
        rows = next((t.shape for ours, t in own.items() if ".position_bias." in ours), None)
        if state[name].shape == rows:
            state[name] = _table_in_use(state[name], grid)
    return state


def task(head: State, config: Any, directory: Path) -> tuple[str, dict[str, Any], Names] | None:
    """Class, arguments and names of our module for their head; None where there is none that ours knows."""
    if "classifier.weight" not in head:
        return None
    outputs = head["classifier.weight"].shape[0]
    arguments = {"num_classes": outputs, "class_names": labels_of(config, outputs, directory)}
    names = weight_and_bias("head", "classifier")
    if not config.use_mean_pooling:
        return "ImageClassifier", {**arguments, "pooling": "class_token"}, names
    below = next((prefix for prefix in (*PREFIXES, "") if f"{prefix}pooler.layernorm.weight" in head), PREFIXES[0])
    arguments["norm_eps"] = config.layer_norm_eps
    return "ImageClassifier", arguments, names | weight_and_bias("norm", f"{below}pooler.layernorm")


def to_task(module: Any, config: Any, prefix: str) -> tuple[Names, tuple[str, ...]]:
    """Make `config` that of a classifier; names of its head, and the beginnings of those weights that theirs has not."""
    config.architectures = ["Data2VecVisionForImageClassification"]
    config.num_labels = module.num_classes
    if module.class_names:
        config.id2label = dict(enumerate(module.class_names))
        config.label2id = {name: number for number, name in enumerate(module.class_names)}
    names = weight_and_bias("head", "classifier")
    if module.pooling == "class_token":
        return names, ("norm.",)
    if module.norm.eps != config.layer_norm_eps:
        raise UserError(f"transformers has no such network: norm_eps is {module.norm.eps}, not {config.layer_norm_eps}")
    config.use_mean_pooling = True
    return names | weight_and_bias("norm", f"{prefix}pooler.layernorm"), ("backbone.transformer.norm.",)


def untrained(config: Any, name: str) -> Backbone:
    """The network that a configuration of theirs describes."""
    if config.hidden_act != "gelu":
        raise UserError(f"{name}: hidden_act is {config.hidden_act!r}, our trunk has 'gelu' only")
    if config.use_relative_position_bias and config.use_shared_relative_position_bias:
        raise UserError(f"{name}: it has relative position biases both shared and per block, our trunk has either")
    encoder = ImageEncoder(
        image_size=_one_or_two(config.image_size),
        patch_size=_one_or_two(config.patch_size),
        in_channels=config.num_channels,
        dim=config.hidden_size,
        positions="learned" if config.use_absolute_position_embeddings else "none",
    )
    depth, num_heads = config.num_hidden_layers, config.num_attention_heads
    position_bias = None
    if config.use_relative_position_bias or config.use_shared_relative_position_bias:
        num_tables = depth if config.use_relative_position_bias else 1
        position_bias = RelativePositionBias(encoder.grid, num_heads, num_tables)
    transformer = Transformer(
        dim=config.hidden_size,
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=config.intermediate_size / config.hidden_size,
        norm_eps=config.layer_norm_eps,
        final_norm=not config.use_mean_pooling,
        layer_scale=config.layer_scale_init_value if config.layer_scale_init_value > 0 else None,
        dropout=float(config.hidden_dropout_prob),
        attention_dropout=float(config.attention_probs_dropout_prob),
        drop_path=float(config.drop_path_rate),
        position_bias=position_bias,
    )
    return Backbone(encoder, transformer)


def _table_in_use(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """The bias table (R, H) as transformers applies it at its own resolution.

    It reads the offsets as across x down instead of down x across and then resizes them bilinearly. On a square grid
    that changes nothing; on any other it is a different table, and the one that the model was trained or measured with.
    """
    down, across = 2 * grid[0] - 1, 2 * grid[1] - 1
    if down == across:
        return table
    offsets = table[:-3].reshape(1, across, down, -1).permute(0, 3, 1, 2)
    offsets = F.interpolate(offsets, size=(down, across), mode="bilinear")
    return torch.cat([offsets.permute(0, 2, 3, 1).flatten(0, 2), table[-3:]])


def config(backbone: Backbone) -> Any:
    """The `Data2VecVisionConfig` of a backbone. `use_mean_pooling` is set where the trunk has no final norm."""
    from transformers import Data2VecVisionConfig

    _check_expressible(backbone)
    encoder, transformer = backbone.encoder, backbone.transformer
    assert isinstance(encoder, ImageEncoder)
    options, bias = transformer.config["init_args"], transformer.position_bias
    return Data2VecVisionConfig(
        architectures=["Data2VecVisionModel"],
        hidden_size=transformer.dim,
        num_hidden_layers=transformer.depth,
        num_attention_heads=options["num_heads"],
        intermediate_size=transformer.get_parameter("blocks.0.mlp.fc1.weight").shape[0],
        hidden_dropout_prob=options["dropout"],
        attention_probs_dropout_prob=options["attention_dropout"],
        layer_norm_eps=options["norm_eps"],
        image_size=_one_or_two(encoder.image_size),
        patch_size=_one_or_two(encoder.patch_size),
        num_channels=encoder.in_channels,
        use_absolute_position_embeddings=encoder.position.embedding is not None,
        use_relative_position_bias=bias is not None and len(bias.tables) > 1,
        use_shared_relative_position_bias=bias is not None and len(bias.tables) == 1,
        layer_scale_init_value=float(options["layer_scale"] or 0.0),
        drop_path_rate=options["drop_path"],
        use_mean_pooling=not options["final_norm"],
    )


def _check_expressible(backbone: Backbone) -> None:
    encoder, options = backbone.encoder, backbone.transformer.config["init_args"]
    assert isinstance(encoder, ImageEncoder)
    needed = {"norm": "pre", "qkv_bias": "qv", "activation_dropout": 0.0, "layer_drop": 0.0, "input_norm": False}
    for option, value in needed.items():
        if options[option] != value:
            raise UserError(f"transformers has no such network: {option} is {options[option]!r}, not {value!r}")
    if options["layer_scale"] is not None and options["layer_scale"] <= 0:
        raise UserError("transformers has no such network: it knows LayerScale with a positive start only")
    if encoder.position.fixed is not None or isinstance(backbone.transformer.position_bias, Alibi):
        raise UserError("transformers has no such network: it knows neither sine-cosine positions nor ALiBi")
    positions = encoder.position.embedding is not None or backbone.transformer.position_bias is not None
    square = all(isinstance(_one_or_two(size), int) for size in (encoder.image_size, encoder.patch_size))
    if positions and not square:
        raise UserError(
            f"transformers has no such network: with positions it needs square images and patches, these are images of "
            f"{encoder.image_size} in patches of {encoder.patch_size}"
        )


def _one_or_two(size: int | Sequence[int]) -> Any:
    """Pixels as the libraries write them: one number for a square, otherwise (height, width)."""
    height, width = (size, size) if isinstance(size, int) else size
    return height if height == width else (height, width)
