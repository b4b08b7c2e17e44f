"""What the options of data2vec 1.0 for speech and text say, as constructor trees of ours."""

from __future__ import annotations

from typing import Any, Literal

import torch

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
from d2v_lightning.checkpoints.tables import State, depth_of
from d2v_lightning.configurable import Tree, plain
from d2v_lightning.method.losses import RegressionLoss
from d2v_lightning.method.student import MaskTokenStudent
from d2v_lightning.method.targets import Targets
from d2v_lightning.method.teacher import Scope
from d2v_lightning.nn.backbone import Backbone
from d2v_lightning.nn.decoder import LinearDecoder, MlpDecoder
from d2v_lightning.nn.encoders import AudioEncoder, TextEncoder
from d2v_lightning.nn.transformer import Transformer
from d2v_lightning.optim.optimization import Optimization
from d2v_lightning.support.errors import UserError
from d2v_lightning.support.tensor_files import Weights

TEXT_PREFIX = "encoder.sentence_encoder."


def audio_backbone(state: Weights, options: dict[str, Any], path: str) -> Backbone:
    """The speech network, without weights, that shapes and options describe.

    Raises:
        ValueError: they describe none, or contradict each other.
    """
    depth, dim = _depth_and_width(state, "encoder.layers.", "post_extract_proj.bias")
    refuse_unknown(options, {"layer_type": "transformer", "activation_fn": "gelu"})
    refuse_contradictions(
        options,
        {
            "encoder_layers": depth,
            "encoder_embed_dim": dim,
            "encoder_ffn_embed_dim": state.sizes("encoder.layers.0.fc1.weight", 2)[0],
            "conv_bias": "feature_extractor.conv_layers.0.0.bias" in state,
        },
    )
    spec = option(
        options, "conv_feature_layers", default="[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]"
    )
    conv_layers = parse_conv_layers(spec)
    convs = depth_of(state, "feature_extractor.conv_layers.")
    found = [state.sizes(f"feature_extractor.conv_layers.{n}.0.weight", 3)[::2] for n in range(convs)]
    if found != [layer[:2] for layer in conv_layers]:
        raise UserError(f"{path}: its options say convolutions {spec}, its weights (channels, kernel) {found}")
    pre_norm = bool(options.get("layer_norm_first"))
    positions = depth_of(state, "encoder.pos_conv.")
    several = "encoder.pos_conv.0.0.weight" in state
    kernel = state.sizes("encoder.pos_conv.0.0.weight" if several else "encoder.pos_conv.0.weight_v", 3)
    layer_norms = "feature_extractor.conv_layers.0.2.1.weight" in state
    refuse_contradictions(
        options,
        {
            "pos_conv_depth": positions,
            "conv_pos_groups": dim // kernel[1],
            "extractor_mode": "layer_norm" if layer_norms else "default",
        },
    )
    with torch.device("meta"):
        encoder = AudioEncoder(
            dim=dim,
            conv_layers=conv_layers,
            conv_norm="layer" if layer_norms else "group",
            conv_bias="feature_extractor.conv_layers.0.0.bias" in state,
            position_depth=positions if several else 1,
            position_width=int(option(options, "conv_pos", default=kernel[-1] * positions)),
            position_groups=dim // kernel[1],
            feature_grad_mult=float(option(options, "feature_grad_mult", default=1.0)),
            padding="released_1",
        )
        transformer = _transformer(
            state,
            "encoder.layers.0.",
            dim,
            depth,
            options,
            {
                "num_heads": int(option(options, "encoder_attention_heads", default=max(1, dim // 64))),
                "layer_drop": float(option(options, "encoder_layerdrop", default=0.0)),
            },
            pre_norm,
            input_norm=not pre_norm,
        )
        return Backbone(encoder, transformer)


def audio_tree(state: Weights, options: dict[str, Any], cfg: dict[str, Any], path: str) -> Tree:
    backbone = audio_backbone(state, options, path)
    with torch.device("meta"):
        student = MaskTokenStudent(backbone, LinearDecoder(backbone.dim, "default"), "uniform")
    scope: Scope = "transformer" if option(options, "ema_layers_only", default=True) else "context"
    if not option(options, "ema_transformer_only", default=True) and scope == "context":
        scope = "backbone"
    scale, lr = option(options, "loss_scale", default=-1.0), learning_rate(cfg, 5e-4)
    schedule = {"lr": lr, "schedule": "tri_stage", "warmup": 0.03, "hold": 0.9, "final_lr": 0.01 * lr}
    return _tree(student, options, scale if scale > 0 else "rsqrt_width", scope, cfg, schedule)


def text_backbone(state: Weights, options: dict[str, Any], path: str) -> Backbone:
    """The text network, without weights, that shapes and options describe.

    Raises:
        ValueError: they describe none, or an option that ours does not have.
    """
    depth, dim = _depth_and_width(state, f"{TEXT_PREFIX}layers.", f"{TEXT_PREFIX}layernorm_embedding.bias")
    trunk = as_options(options.get("transformer")) or options  # RoBERTa's, with which GLUE was tuned, are flat
    hidden = state.sizes(f"{TEXT_PREFIX}layers.0.fc1.weight", 2)[0]
    found = {"layers": depth, "embed_dim": dim, "ffn_embed_dim": hidden}
    refuse_contradictions(trunk, {f"encoder{between}{name}": said for name, said in found.items() for between in "._"})
    vocab_size = state.sizes(f"{TEXT_PREFIX}embed_tokens.weight", 2)[0]
    pre_norm = option(trunk, "encoder.normalize_before", "encoder_normalize_before", default=False)
    refuse_unknown(trunk, {"no_scale_embedding": True, "encoder.learned_pos": True, "activation_fn": "gelu"})
    with torch.device("meta"):
        encoder = TextEncoder(
            dim=dim,
            vocab_size=vocab_size,
            max_positions=state.sizes(f"{TEXT_PREFIX}embed_positions.weight", 2)[0] - 2,
            pad_id=1,
            mask_id=vocab_size - 1,
            padding="released_1",
        )
        transformer = _transformer(
            state,
            f"{TEXT_PREFIX}layers.0.",
            dim,
            depth,
            trunk,
            {
                "num_heads": int(
                    option(trunk, "encoder.attention_heads", "encoder_attention_heads", default=max(1, dim // 64))
                ),
                "layer_drop": float(option(trunk, "encoder.layerdrop", "encoder_layerdrop", default=0.0)),
            },
            pre_norm,
            input_norm=False,
        )
        return Backbone(encoder, transformer)


def text_tree(state: Weights, options: dict[str, Any], cfg: dict[str, Any], path: str) -> Tree:
    backbone = text_backbone(state, options, path)
    head = _sequential(state, "encoder.regression_head.") or int(option(options, "head_layers", default=1))
    refuse_contradictions(options, {"head_layers": head})
    with torch.device("meta"):
        dim = backbone.dim
        decoder = LinearDecoder(dim, "normal") if head == 1 else MlpDecoder(dim, head, "normal")
        student = MaskTokenStudent(backbone, decoder)
    scope: Scope = "transformer" if option(options, "ema_transformer_layers_only", default=True) else "backbone"
    scale = option(options, "loss_scale", default=-1.0)
    schedule = {"lr": learning_rate(cfg, 2e-4), "schedule": "fairseq_cosine", "warmup": 0.01, "final_lr": 0.0}
    return _tree(student, options, scale if scale > 0 else "rsqrt_width", scope, cfg, schedule)


def _sequential(state: State, prefix: str) -> int:
    """Linear layers of a Sequential, whose every second module is an activation without weights."""
    numbers = {name[len(prefix) :].partition(".")[0] for name in state if name.startswith(prefix)}
    return len(numbers)


def _depth_and_width(state: Weights, layers: str, bias: str) -> tuple[int, int]:
    depth = depth_of(state, layers)
    if depth == 0:
        raise UserError(f"no {layers}0 among its weights")
    return depth, state.sizes(bias, 1)[0]


def _transformer(
    state: Weights,
    first: str,
    dim: int,
    depth: int,
    options: dict[str, Any],
    sizes: dict[str, Any],
    pre_norm: bool,
    input_norm: bool,
) -> Transformer:
    dropout = float(option(options, "dropout", default=0.1))
    return Transformer(
        dim=dim,
        depth=depth,
        mlp_ratio=state.sizes(f"{first}fc1.weight", 2)[0] / dim,
        norm="pre" if pre_norm else "post",
        norm_eps=1e-5,
        final_norm=pre_norm,
        input_norm=input_norm,
        qkv_bias="qkv",
        layer_scale=None,
        dropout=dropout,
        input_dropout=dropout,
        attention_dropout=float(option(options, "attention_dropout", default=0.1)),
        activation_dropout=float(option(options, "activation_dropout", default=0.0)),
        init="normal",
        **sizes,
    )


def _tree(
    student: MaskTokenStudent,
    options: dict[str, Any],
    scale: float | Literal["rsqrt_width"],
    scope: Scope,
    cfg: dict[str, Any],
    schedule: dict[str, Any],
) -> Tree:
    each, after = target_norms(options)
    arguments = {
        "student": student,
        "targets": Targets(
            average_top_k_layers=int(option(options, "average_top_k_layers", default=8)),
            layer_results="ffn",
            norm_each=each,
            norm_after=after,
        ),
        "loss": RegressionLoss(beta=float(option(options, "loss_beta", default=0.0)), over_width="sum", scale=scale),
        "ema_teacher": EMATeacher(
            decay_start=float(option(options, "ema_decay", default=0.999)),
            decay_end=float(option(options, "ema_end_decay", default=0.9999)),
            anneal_steps=ema_anneal_steps(options, cfg),
            first_update=1,
        ),
        "optimization": Optimization(betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01, decay_all=True, **schedule),
        "teacher_scope": scope,
    }
    return {"class_path": "d2v_lightning.Data2Vec", "init_args": plain(arguments)}
