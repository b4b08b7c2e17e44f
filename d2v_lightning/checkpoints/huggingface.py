"""Image models of the `transformers` library, in and out: Data2VecVision, and BEiT where it is the same network.

The file is read as it lies on disk, `config.json` beside `model.safetensors`: names there have stayed the same while
the library's classes were renamed inside. Nothing in the file is executed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor
from torch.nn import functional as F

from d2v_lightning.backbone import Backbone
from d2v_lightning.encoders.image import ImageEncoder
from d2v_lightning.position import RelativePositionBias
from d2v_lightning.saving import read_tensors
from d2v_lightning.transformer import Transformer

State = dict[str, Tensor]

_BLOCK, _THEIRS = "transformer.blocks.#.", "encoder.layer.#."
_TABLE = "relative_position_bias.relative_position_bias_table"

# Our name -> theirs; "#" is a block's number. Several names stand for one tensor of ours, cut along its first
# dimension. Used in both directions.
IMAGE_BACKBONE: dict[str, tuple[str, ...]] = {
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
# Where models with a head keep the network, and what a `Backbone` has no use for.
PREFIXES = ("data2vec_vision.", "beit.")
DERIVED = re.compile(r"(^|\.)relative_position_index$")  # a function of the grid
HEAD = re.compile(r"^(embeddings\.mask_token|(pooler|classifier|lm_head|decode_head|auxiliary_head|fpn\d)\..*)$")
HEAD_NORM = re.compile(r"^layernorm\.(weight|bias)$")  # of a head, where the model itself ends without a norm


def load_huggingface(path_or_name: str | Path) -> Backbone:
    """The network of a `Data2VecVisionModel`, `Data2VecVisionForImageClassification` or their BEiT counterparts.

    Heads, poolers (with the layer norm of mean pooling) and mask tokens are left out, and that is said. With
    `use_mean_pooling` the model has no norm after the last block, and neither has the result.

    Args:
        path_or_name: a directory with `config.json` and `model.safetensors` (or `pytorch_model.bin`), or a hub name.

    Returns:
        A backbone with the same hidden states, in training mode.

    Raises:
        FileNotFoundError: the directory, or one of its files, does not exist.
        ValueError: the model is of another type or uses an option that our trunk does not have; or its file is damaged,
            or holds more or fewer weights than the configuration asks for.
    """
    directory = _directory(path_or_name)
    name = str(path_or_name)
    config = _read_config(directory)
    return _backbone(config, _network(_read_weights(directory), config, name), name)


def huggingface_state_dict(backbone: Backbone) -> State:
    """Weights under the names of `Data2VecVisionModel`.

    Raises:
        ValueError: transformers has no such network, see `huggingface_config`.
    """
    _check_expressible(backbone)
    state: State = {}
    for ours, tensor in backbone.state_dict().items():
        theirs = _their_names(ours)
        state.update(zip(theirs, (part.clone() for part in tensor.chunk(len(theirs))), strict=True))
    return state


def huggingface_config(backbone: Backbone) -> Any:
    """The `Data2VecVisionConfig` of a backbone. `use_mean_pooling` is set where the trunk has no final norm.

    Raises:
        ValueError: transformers has no such network; the message names the option.
    """
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


def save_huggingface(backbone: Backbone, directory: str | Path) -> None:
    """Write `config.json` and `model.safetensors`: `Data2VecVisionModel.from_pretrained(directory)` is this network.

    Raises:
        ValueError: transformers has no such network, see `huggingface_config`.
    """
    from safetensors.torch import save_file

    config, state = huggingface_config(backbone), huggingface_state_dict(backbone)
    Path(directory).mkdir(parents=True, exist_ok=True)
    config.save_pretrained(directory)
    state = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
    save_file(state, Path(directory) / "model.safetensors", metadata={"format": "pt"})


# ---- reading ---------------------------------------------------------------------------------------------------------


def _directory(path_or_name: str | Path) -> Path:
    """Where the files lie, fetched from the hub where a name and not a directory is given."""
    if Path(path_or_name).is_dir():
        return Path(path_or_name)
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", str(path_or_name)):
        raise FileNotFoundError(f"no directory at {path_or_name}: give a directory that exists, or a name on the hub")
    from huggingface_hub import snapshot_download

    directory = Path(snapshot_download(str(path_or_name), allow_patterns=["config.json", "model.safetensors"]))
    if not (directory / "model.safetensors").is_file():
        directory = Path(snapshot_download(str(path_or_name), allow_patterns=["config.json", "pytorch_model.bin"]))
    return directory


def _read_config(directory: Path) -> Any:
    """The configuration, with the library's defaults for what the file leaves out."""
    from transformers import BeitConfig, Data2VecVisionConfig

    path = directory / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"no config.json in {directory}: it says what the weights beside it are")
    try:
        options = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    model_type = options.get("model_type") if isinstance(options, dict) else None
    classes = {"data2vec-vision": Data2VecVisionConfig, "beit": BeitConfig}
    if model_type not in classes:
        raise ValueError(f"{path} describes a model of type {model_type!r}: supported are {', '.join(classes)}")
    return classes[model_type].from_dict(options)


def _read_weights(directory: Path) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = directory / "model.safetensors"
    if path.is_file():
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error
    older = directory / "pytorch_model.bin"
    if not older.is_file():
        raise FileNotFoundError(f"neither model.safetensors nor pytorch_model.bin in {directory}")
    return dict(read_tensors(older))


def _network(state: Mapping[str, Tensor], config: Any, name: str) -> State:
    """The weights of the network itself under the names of `Data2VecVisionModel`, without heads and derived buffers.

    Raises:
        ValueError: a weight outside the network belongs to no head that we know.
    """
    prefix = next((prefix for prefix in PREFIXES if any(weight.startswith(prefix) for weight in state)), "")
    network, left_out = {}, []
    for weight, tensor in state.items():
        inside = weight.startswith(prefix)
        bare = weight.removeprefix(prefix)
        of_head = HEAD.match(bare) or (HEAD_NORM.match(bare) and (not inside or config.use_mean_pooling))
        if DERIVED.search(bare):
            continue
        if of_head:
            left_out.append(weight)
        elif inside:
            network[bare] = tensor
        else:
            raise ValueError(f"{name}: weight {weight!r} is not part of this model")
    if left_out:
        rank_zero_info(f"{name}: not part of a backbone and left out: {', '.join(sorted(left_out))}")
    return network


def _backbone(config: Any, network: State, name: str) -> Backbone:
    """The network that `config` describes, with the weights in `network`, every one of which must have its place."""
    backbone = _untrained(config, name)
    assert isinstance(backbone.encoder, ImageEncoder)
    grid, state, missing = backbone.encoder.grid, {}, []
    for ours, own in backbone.state_dict().items():
        theirs = _their_names(ours)
        absent = [weight for weight in theirs if weight not in network]
        if absent:
            missing += absent
            continue
        state[ours] = torch.cat([network.pop(weight) for weight in theirs])
        if theirs[0].endswith(_TABLE) and state[ours].shape == own.shape:
            state[ours] = _table_in_use(state[ours], grid)
        if state[ours].shape != own.shape:
            raise ValueError(
                f"{name}: {theirs[0]} makes a tensor of shape {tuple(state[ours].shape)}, "
                f"the configuration asks for {tuple(own.shape)}"
            )
        if not torch.isfinite(state[ours]).all():
            raise ValueError(f"{name}: weight {theirs[0]!r} holds NaN or infinity")
    if missing or network:
        raise ValueError(f"{name}: weights missing {missing[:3]}, not expected {sorted(network)[:3]}")
    backbone.load_state_dict(state)
    return backbone


def _untrained(config: Any, name: str) -> Backbone:
    if config.hidden_act != "gelu":
        raise ValueError(f"{name}: hidden_act is {config.hidden_act!r}, our trunk has 'gelu' only")
    if config.use_relative_position_bias and config.use_shared_relative_position_bias:
        raise ValueError(f"{name}: it has relative position biases both shared and per block, our trunk has either")
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


# ---- both directions -------------------------------------------------------------------------------------------------


def _their_names(ours: str) -> tuple[str, ...]:
    number = re.search(r"(?<=\.)\d+(?=\.|$)", ours)
    if number is None:
        return IMAGE_BACKBONE[ours]
    pattern = f"{ours[: number.start()]}#{ours[number.end() :]}"
    return tuple(theirs.replace("#", number[0]) for theirs in IMAGE_BACKBONE[pattern])


def _check_expressible(backbone: Backbone) -> None:
    encoder, options = backbone.encoder, backbone.transformer.config["init_args"]
    if not isinstance(encoder, ImageEncoder):
        raise ValueError(f"transformers has no such network: the encoder is {type(encoder).__name__}")
    needed = {"norm": "pre", "qkv_bias": "qv", "activation_dropout": 0.0, "layer_drop": 0.0}
    for option, value in needed.items():
        if options[option] != value:
            raise ValueError(f"transformers has no such network: {option} is {options[option]!r}, not {value!r}")
    if options["layer_scale"] is not None and options["layer_scale"] <= 0:
        raise ValueError("transformers has no such network: it knows LayerScale with a positive start only")
    positions = encoder.position.embedding is not None or backbone.transformer.position_bias is not None
    square = all(isinstance(_one_or_two(size), int) for size in (encoder.image_size, encoder.patch_size))
    if positions and not square:
        raise ValueError(
            f"transformers has no such network: with positions it needs square images and patches, these are images of "
            f"{encoder.image_size} in patches of {encoder.patch_size}"
        )


def _one_or_two(size: int | Sequence[int]) -> Any:
    """Pixels as the libraries write them: one number for a square, otherwise (height, width)."""
    height, width = (size, size) if isinstance(size, int) else size
    return height if height == width else (height, width)
