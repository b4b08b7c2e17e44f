"""What the options and shapes of data2vec 2.0 say, as networks and constructor trees of ours."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from d2v_lightning.callbacks.ema_teacher import EMATeacher
from d2v_lightning.checkpoints.options import (
    as_options,
    ema_anneal_steps,
    learning_rate,
    option,
    parse_conv_layers,
    refuse_contradictions,
    refuse_unknown,
    target_norms,
)
from d2v_lightning.checkpoints.tables import depth_of
from d2v_lightning.configurable import Tree, plain
from d2v_lightning.flavour import rank_zero_warn
from d2v_lightning.method.losses import RegressionLoss
from d2v_lightning.method.student import VisibleStudent
from d2v_lightning.method.targets import Targets
from d2v_lightning.method.teacher import Scope
from d2v_lightning.nn.backbone import Backbone
from d2v_lightning.nn.decoder import ConvDecoder
from d2v_lightning.nn.encoders import AudioEncoder, Encoder, ImageEncoder, TextEncoder
from d2v_lightning.nn.encoders.image import patch_grid
from d2v_lightning.nn.normalization import IMAGENET
from d2v_lightning.nn.position import Alibi, sine_cosine_positions
from d2v_lightning.nn.transformer import Transformer
from d2v_lightning.optim.optimization import Optimization
from d2v_lightning.support.errors import UserError
from d2v_lightning.support.tensor_files import Weights

FIXED = "fixed_positional_encoder.positions"  # a function of the grid


def grid_of(table: Tensor, name: str) -> tuple[int, int]:
    """The grid (down, across) whose sine-cosine positions a table (1, N, D) holds.

    Raises:
        ValueError: it holds those of none, so that ours would compute with others.
    """
    sizes = tuple(table.shape)
    patches, dim = sizes[1:] if len(sizes) == 3 and sizes[0] == 1 else (0, 0)
    close = {torch.float16: 2e-3, torch.bfloat16: 2e-2}.get(table.dtype, 1e-4)
    for down in [down for down in range(1, patches + 1) if patches % down == 0 and dim % 4 == 0]:
        grid = (down, patches // down)
        with torch.device("cpu"):  # also while a network is described on "meta"
            positions = sine_cosine_positions(grid, dim).reshape(sizes)
        if torch.allclose(positions, table.float(), rtol=0.0, atol=close):
            return grid
    raise UserError(f"weight {name!r} of shape {sizes} holds positions that are not the sines and cosines of any grid")


def backbone_of(state: Weights, modality: str, options: dict[str, Any], path: str) -> Backbone:
    """The network, without weights, that shapes and options describe.

    Raises:
        ValueError: they describe none, or contradict each other.
    """
    below, own = f"modality_encoders.{modality}.", _own_options(options, modality)
    said = options.get("supported_modality")
    if isinstance(said, str) and said.rpartition(".")[2].upper() != modality:
        raise UserError(f"{path}: its option supported_modality is {said!r}, its weights are those of {modality}")
    refuse_unknown(options, {"norm_affine": True})
    if "blocks.0.norm1.weight" not in state:
        raise UserError(f"{path}: no first block among its weights")
    if options.get("layer_norm_first"):
        raise UserError(
            f"{path} is pre-norm (layer_norm_first), which loses its residual in Meta's code and is not read"
        )
    dim, hidden = state.sizes("blocks.0.norm1.weight", 1)[0], state.sizes("blocks.0.mlp.fc1.weight", 2)[0]
    prenet, depth = depth_of(state, f"{below}context_encoder.blocks."), depth_of(state, "blocks.")
    refuse_contradictions(options, {"depth": depth, "embed_dim": dim, "mlp_ratio": hidden / dim})
    refuse_contradictions(own, {"prenet_depth": prenet})
    heads = int(option(options, "num_heads", default=max(1, dim // 64)))
    dropout = float(option(options, "encoder_dropout", default=0.1))
    if (after := float(option(options, "post_mlp_drop", default=0.1))) != dropout:
        rank_zero_warn(
            f"{path}: its options encoder_dropout {dropout} and post_mlp_drop {after} differ, which no released model's do: "
            "ours drops as much after attention as after the FFN, so encoder_dropout is taken for both"
        )
    with torch.device("meta"):
        encoder = _encoder(state, below, modality, dim, own, path)
        alibi = state.get(f"{below}alibi_scale")
        if alibi is not None:
            refuse_unknown(own, {"learned_alibi_scale_per_head": True})
        if bool(own.get("use_alibi_encoder")) != (alibi is not None):
            raise UserError(
                f"{path}: its option use_alibi_encoder contradicts its weights: learned scales are expected"
            )
        transformer = Transformer(
            dim=dim,
            depth=prenet + depth,
            num_heads=heads,
            mlp_ratio=hidden / dim,
            norm="post",
            norm_eps=float(option(options, "norm_eps", default=1e-6)),
            final_norm="norm.weight" in state,
            input_norm=f"{below}context_encoder.norm.weight" in state,
            qkv_bias="qkv",
            layer_scale=None,
            dropout=dropout,
            attention_dropout=float(option(options, "attention_dropout", default=0.1)),
            activation_dropout=float(option(options, "activation_dropout", default=0.0)),
            activation_dropout_twice=True,
            input_dropout=float(
                option(own, "dropout", default=0.1)
                if modality == "TEXT"
                else option(own, "prenet_dropout", default=0.0)
            ),
            drop_path=float(option(options, "end_drop_path_rate", default=0.0)),
            layer_drop=float(option(options, "layerdrop", default=0.0)),
            init="normal",
            position_bias=None if alibi is None else Alibi(heads, alibi.shape[0]),
            prenet_depth=prenet,
        )
        return Backbone(encoder, transformer)


def _own_options(options: dict[str, Any], modality: str) -> dict[str, Any]:
    return as_options(option(options, f"modalities.{modality.lower()}", default={})) or {}


def tree_of(state: Weights, modality: str, options: dict[str, Any], cfg: dict[str, Any], path: str) -> Tree:
    """The `Data2Vec` that shapes and options describe, as a constructor tree."""
    backbone, own = backbone_of(state, modality, options, path), _own_options(options, modality)
    decoder = as_options(own.get("decoder")) or {}
    with torch.device("meta"):
        student = VisibleStudent(
            backbone,
            _decoder(state, f"modality_encoders.{modality}.decoder.", backbone.dim, backbone.encoder, decoder, path),
            mask_noise_std=float(option(own, "mask_noise_std", default=0.01)),
        )
    each, after = target_norms(options)
    scale = option(options, "loss_scale", default=-1.0)
    arguments = {
        "student": student,
        "targets": Targets(
            average_top_k_layers=int(option(options, "average_top_k_layers", default=8)),
            layer_results="block" if options.get("end_of_block_targets") else "ffn",
            norm_each=each,
            norm_after=after,
        ),
        "loss": RegressionLoss(
            beta=float(option(options, "loss_beta", default=0.0)),
            over_width="sum",
            scale=scale if scale > 0 else "rsqrt_width",
        ),
        "ema_teacher": EMATeacher(
            decay_start=float(option(options, "ema_decay", default=0.999)),
            decay_end=float(option(options, "ema_end_decay", default=0.9999)),
            anneal_steps=ema_anneal_steps(options, cfg),
            first_update=1,
        ),
        "optimization": _optimization(modality, learning_rate(cfg, 7.5e-4)),
        "teacher_scope": _scope(options, own),
        "class_loss": float(option(options, "cls_loss", default=0.0)),
    }
    return {"class_path": "d2v_lightning.Data2Vec", "init_args": plain(arguments)}


def refuse_borrowing(backbone: Backbone, modality: str, options: dict[str, Any]) -> None:
    """Compare what the teacher of a file shares with the student, as options say, with what ours shares.

    Raises:
        ValueError: it is more.
    """
    trunk, scope = backbone.transformer.config["init_args"], _scope(options, _own_options(options, modality))
    if scope == "transformer" and (trunk["prenet_depth"] or trunk["input_norm"] or trunk["position_bias"] is not None):
        raise UserError(
            "its option ema_encoder_only is true: such a teacher shares prenet, norm and ALiBi scales with the student, "
            "which ours does not"
        )
    if scope == "context" and modality == "TEXT":
        raise UserError(
            "its options ema_encoder_only and ema_local_encoder are false: such a teacher of text shares its positions "
            "with the student, which ours does not"
        )


def _scope(options: dict[str, Any], own: dict[str, Any]) -> Scope:
    if option(options, "ema_encoder_only", default=True):
        return "transformer"
    return "backbone" if own.get("ema_local_encoder") else "context"


def _optimization(modality: str, lr: float) -> Optimization:
    """What `config/v2` says for Base, with the file's rate."""
    images = modality == "IMAGE"
    return Optimization(
        lr=lr,
        betas=(0.9, 0.95 if images else 0.98),
        eps=1e-8 if images else 1e-6,
        weight_decay=0.05 if images else 0.01,
        decay_all=True,
        schedule="fairseq_cosine",
        warmup={"IMAGE": 0.13333334, "AUDIO": 0.02, "TEXT": 0.004}[modality],
        final_lr=0.0,
    )


def _encoder(state: Weights, below: str, modality: str, dim: int, own: dict[str, Any], path: str) -> Encoder:
    if modality == "IMAGE":
        _, channels, patch, _ = state.sizes(f"{below}local_encoder.proj.weight", 4)
        refuse_unknown(own, {"use_alibi_encoder": False})  # theirs is of distances in two dimensions
        fixed = below + FIXED in state
        if fixed:
            grid = grid_of(state[below + FIXED], below + FIXED)
        else:
            size = int(option(own, "input_size", default=224))
            grid = patch_grid((size, size), (patch, patch))
        refuse_contradictions(own, {"patch_size": patch, "in_chans": channels})
        if grid[0] == grid[1]:
            refuse_contradictions(own, {"input_size": grid[0] * patch})
        mean, std = IMAGENET.of_channels(channels)  # `mae_image_dataset.py` and `mae_finetuning_image_dataset.py`
        return ImageEncoder(
            image_size=grid[0] * patch if grid[0] == grid[1] else (grid[0] * patch, grid[1] * patch),
            patch_size=patch,
            in_channels=channels,
            dim=dim,
            positions="sine_cosine" if fixed else "none",
            init="xavier",
            mean=mean,
            std=std,
        )
    if modality == "TEXT":
        refuse_unknown(own, {"no_scale_embedding": True})
        vocab_size = state.sizes(f"{below}local_encoder.embed_tokens.weight", 2)[0]
        return TextEncoder(
            dim=dim,
            vocab_size=vocab_size,
            max_positions=state.sizes(f"{below}local_encoder.embed_positions.weight", 2)[0] - 2,
            pad_id=1,
            mask_id=vocab_size - 1,
            padding="released_2",
        )
    conv_layers = parse_conv_layers(own.get("feature_encoder_spec"))
    convs = depth_of(state, f"{below}local_encoder.conv_layers.")
    found = [state.sizes(f"{below}local_encoder.conv_layers.{n}.0.weight", 3)[::2] for n in range(convs)]
    if found != [layer[:2] for layer in conv_layers]:
        raise UserError(f"{path}: its options say convolutions {own.get('feature_encoder_spec')}, its weights others")
    if own.get("conv_pos_pre_ln"):
        raise UserError(f"{path}: its option conv_pos_pre_ln is set, which no released model has")
    positions = [
        name for name in state if re.fullmatch(re.escape(below) + r"relative_positional_encoder\.\d+\.0\.weight", name)
    ]
    if not positions:
        raise UserError("no convolutions for positions among its weights")
    if len(positions) == 1:
        raise UserError("its option conv_pos_depth is 1: ours has weight norm in a single convolution, as 1.0 has")
    kernel = state.sizes(positions[0], 3)
    layer_norms = f"{below}local_encoder.conv_layers.0.2.1.weight" in state
    refuse_contradictions(
        own,
        {
            "conv_pos_depth": len(positions),
            "conv_pos_groups": dim // kernel[1],
            "extractor_mode": "layer_norm" if layer_norms else "default",
        },
    )
    return AudioEncoder(
        dim=dim,
        conv_layers=conv_layers,
        conv_norm="layer" if layer_norms else "group",
        conv_bias=f"{below}local_encoder.conv_layers.0.0.bias" in state,
        position_depth=len(positions),
        position_width=int(option(own, "conv_pos_width", default=kernel[-1] * len(positions))),
        position_groups=dim // kernel[1],
        feature_grad_mult=float(option(own, "local_grad_mult", default=1.0)),
        padding="released_2",
    )


def _decoder(state: Weights, below: str, dim: int, encoder: Encoder, options: dict[str, Any], path: str) -> ConvDecoder:
    depth, grid = depth_of(state, f"{below}blocks."), encoder.grid if isinstance(encoder, ImageEncoder) else None
    if depth == 0:
        return ConvDecoder(dim=dim, grid=grid)  # where only a backbone is wanted
    width, group, kernel, *_ = state.sizes(f"{below}blocks.0.0.weight", 4 if isinstance(encoder, ImageEncoder) else 3)
    found = {"decoder_layers": depth, "decoder_dim": width, "decoder_kernel": kernel, "decoder_groups": dim // group}
    refuse_contradictions(options, found)
    for name in ("add_positions_masked", "add_positions_all"):
        if options.get(name):
            raise UserError(f"{path}: its decoder has {name}, which no released model has")
    projection = depth_of(state, f"{below}proj.") // 2 + 1
    ratio = state.sizes(f"{below}proj.0.weight", 2)[0] / width if projection > 1 else 2.0
    return ConvDecoder(
        dim=dim,
        grid=grid,
        depth=depth,
        kernel=kernel,
        width=width,
        groups=dim // group,
        residual=bool(option(options, "decoder_residual", default=True)),
        projection_depth=projection,
        projection_ratio=ratio,
        input_dropout=float(option(options, "input_dropout", default=0.1)),
        init="normal" if isinstance(encoder, TextEncoder) else "default",
    )
