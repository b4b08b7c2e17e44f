"""data2vec 1.0 for speech and text as fairseq wrote it: `{"model": {..., "_ema": {...}}, "cfg": {"model": {...}}}`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from pytorch_lightning.utilities import rank_zero_info

from d2v_lightning.backbone import Backbone
from d2v_lightning.callbacks.ema_teacher import EMATeacher
from d2v_lightning.checkpoints.content import FREE, Content
from d2v_lightning.checkpoints.options import as_options, option, parse_conv_layers, target_norms
from d2v_lightning.checkpoints.tables import (
    Names,
    Row,
    State,
    both,
    depth_of,
    drop,
    named_tensors,
    prefixed,
    to_ours,
    to_theirs,
)
from d2v_lightning.configurable import Tree, build, plain
from d2v_lightning.decoder import LinearDecoder, MlpDecoder
from d2v_lightning.encoders import AudioEncoder, TextEncoder
from d2v_lightning.losses import RegressionLoss
from d2v_lightning.optim import Optimization
from d2v_lightning.student import MaskTokenStudent
from d2v_lightning.targets import Targets
from d2v_lightning.teacher import Scope
from d2v_lightning.transformer import Transformer

if TYPE_CHECKING:
    from d2v_lightning.module import Data2Vec

TRUNK: Names = {
    **both(
        "blocks.#.attn.qkv",
        "layers.#.self_attn.q_proj",
        "layers.#.self_attn.k_proj",
        "layers.#.self_attn.v_proj",
    ),
    **both("blocks.#.attn.proj", "layers.#.self_attn.out_proj"),
    **both("blocks.#.norm1", "layers.#.self_attn_layer_norm"),
    **both("blocks.#.norm2", "layers.#.final_layer_norm"),
    **both("blocks.#.mlp.fc1", "layers.#.fc1"),
    **both("blocks.#.mlp.fc2", "layers.#.fc2"),
    **both("input_norm", "layer_norm"),  # post-norm trunks have the one,
    **both("norm", "layer_norm"),  # pre-norm trunks the other
}
# Speech: convolutions with a layer norm each, or with one group norm after the first.
AUDIO_FEATURES: Names = {
    **both("convs.#", "feature_extractor.conv_layers.#.0"),
    **both("norm", "layer_norm"),
    **both("proj", "post_extract_proj"),
}
LAYER_NORMS = both("conv_norms.#", "feature_extractor.conv_layers.#.2.1")
GROUP_NORM = both("conv_norms.0", "feature_extractor.conv_layers.0.2")
POSITIONS = both("convs.#", "pos_conv.#.0")
ONE_POSITION: Names = {
    "convs.0.bias": ("pos_conv.0.bias",),
    "convs.0.parametrizations.weight.original0": ("pos_conv.0.weight_g",),
    "convs.0.parametrizations.weight.original1": ("pos_conv.0.weight_v",),
}
AUDIO_HEAD: Names = {"mask_token": ("mask_emb",), **both("decoder.proj", "final_proj")}
TEXT_EMBEDDING: Names = {
    "embedding.weight": ("embed_tokens.weight",),
    "position.embedding.weight": ("embed_positions.weight",),
    **both("position.norm", "layernorm_embedding"),
}
TEXT_PREFIX = "encoder.sentence_encoder."
TEXT_VERSION = "version"  # a number that fairseq keeps among the weights


def convert(file: dict[str, Any], path: str) -> Content:
    """A pre-trained `Data2Vec`, see `convert_official`."""
    cfg = as_options(file["cfg"]) or {}
    options = model_options(cfg, path)
    weights = dict(file["model"])
    ema = weights.pop("_ema", None)
    student = named_tensors(weights, path)
    if is_audio(student):
        tree, modality = _audio_tree(student, options, cfg, path), "speech"
    elif any(name.startswith(TEXT_PREFIX) for name in student):
        tree, modality = _text_tree(student, options, cfg, path), "text"
    else:
        raise ValueError(f"{path}: neither convolutions of waveforms nor a sentence encoder among its weights")
    say_padding(path, "released_1")
    with torch.device("meta"):
        model: Data2Vec = build(tree)
    rows: list[Row] = []
    state = to_ours(model.student.state_dict(), student, _student_table(model), path, rows, "student.")
    converted = {f"student.{name}": tensor for name, tensor in state.items()}
    drop_version(student, rows)
    _refuse_rest(student, path)
    kind = f"data2vec 1.0 for {modality}, pre-trained"
    if ema is None:
        rank_zero_info(f"{path} has no teacher ('_ema'): the teacher starts as a copy of the student")
        for name in model.teacher.state_dict():
            converted[f"teacher.{name}"] = converted[_student_name(name)].clone()
        return Content(tree, converted, f"{kind}, without teacher", FREE, rows)
    teacher = named_tensors(ema, f"{path} (_ema)")
    state = to_ours(model.teacher.state_dict(), teacher, _teacher_table(model), f"{path} (_ema)", rows, "teacher.")
    for name in [name for name in teacher if name.startswith(("pos_conv.", "embed_", "layernorm_embedding."))]:
        drop(teacher, name, "the teacher shares the student's", rows)
    drop_version(teacher, rows)
    _refuse_rest(teacher, f"{path} (_ema)")
    return Content(tree, converted | {f"teacher.{name}": tensor for name, tensor in state.items()}, kind, FREE, rows)


def model_options(cfg: dict[str, Any], path: str) -> dict[str, Any]:
    """The section of a configuration that describes the network.

    Raises:
        ValueError: there is none.
    """
    options = as_options(cfg.get("model"))
    if options is None:
        raise ValueError(f"{path}: its entry 'cfg' has no section 'model', which says what network this is")
    return options


def is_audio(weights: State) -> bool:
    """Whether the names are those of a 1.0 speech model."""
    return any(name.startswith("feature_extractor.") for name in weights)


def say_padding(path: str, padding: str) -> None:
    """Say how padding is treated, which is not how ours is by default."""
    rank_zero_info(
        f"{path}: padding is handled as in Meta's code (encoder.padding: {padding}), under which it was trained"
    )


def drop_version(rest: State, rows: list[Row]) -> None:
    """Drop the number that fairseq keeps among the weights of text models."""
    for name in [name for name in rest if name.rpartition(".")[2] == TEXT_VERSION]:
        drop(rest, name, "a version number", rows)


def state_dict(model: Data2Vec) -> dict[str, State]:
    """`{"model": {..., "_ema": {...}}}`, see `official_state_dict`."""
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
    return {"model": {**student, "_ema": teacher}}


# ---- names -----------------------------------------------------------------------------------------------------------


def _student_table(model: Data2Vec) -> Names:
    head: Names = AUDIO_HEAD
    if isinstance(model.encoder, TextEncoder):
        decoder = model.student.decoder
        head = both("decoder.proj", "encoder.regression_head.0")
        for layer in range(decoder.config["init_args"]["depth"] if isinstance(decoder, MlpDecoder) else 0):
            head |= both(f"decoder.layers.{layer}", f"encoder.regression_head.{2 * layer}")
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


def _teacher_table(model: Data2Vec) -> Names:
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
        raise ValueError(f"{path}: weight {min(rest)!r} is not part of data2vec 1.0 pre-training")


# ---- options ---------------------------------------------------------------------------------------------------------


def audio_backbone(state: State, options: dict[str, Any], path: str) -> Backbone:
    """The speech network, without weights, that shapes and options describe.

    Raises:
        ValueError: they describe none, or contradict each other.
    """
    depth, dim = _depth_and_width(state, "encoder.layers.", "post_extract_proj.bias", path)
    spec = option(
        options, "conv_feature_layers", default="[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]"
    )
    conv_layers = parse_conv_layers(spec, path)
    convs = depth_of(state, "feature_extractor.conv_layers.")
    found = [tuple(state[f"feature_extractor.conv_layers.{n}.0.weight"].shape[::2]) for n in range(convs)]
    if found != [layer[:2] for layer in conv_layers]:
        raise ValueError(f"{path}: its options say convolutions {spec}, its weights (channels, kernel) {found}")
    pre_norm = bool(options.get("layer_norm_first"))
    positions = depth_of(state, "encoder.pos_conv.")
    several = "encoder.pos_conv.0.0.weight" in state
    kernel = state["encoder.pos_conv.0.0.weight" if several else "encoder.pos_conv.0.weight_v"]
    with torch.device("meta"):
        encoder = AudioEncoder(
            dim=dim,
            conv_layers=conv_layers,
            conv_norm="layer" if "feature_extractor.conv_layers.0.2.1.weight" in state else "group",
            conv_bias="feature_extractor.conv_layers.0.0.bias" in state,
            position_depth=positions if several else 1,
            position_width=int(option(options, "conv_pos", default=kernel.shape[-1] * positions)),
            position_groups=dim // kernel.shape[1],
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
                "num_heads": int(option(options, "encoder_attention_heads", default=dim // 64)),
                "layer_drop": float(option(options, "encoder_layerdrop", default=0.0)),
            },
            pre_norm,
            input_norm=not pre_norm,
        )
        return Backbone(encoder, transformer)


def _audio_tree(state: State, options: dict[str, Any], cfg: dict[str, Any], path: str) -> Tree:
    backbone = audio_backbone(state, options, path)
    with torch.device("meta"):
        student = MaskTokenStudent(backbone, LinearDecoder(backbone.dim, "default"), "uniform")
    scope: Scope = "transformer" if option(options, "ema_layers_only", default=True) else "context"
    if not option(options, "ema_transformer_only", default=True) and scope == "context":
        scope = "backbone"
    scale = option(options, "loss_scale", default="rsqrt_width")
    return _tree(student, options, scale, scope, cfg)


def text_backbone(state: State, options: dict[str, Any], path: str) -> Backbone:
    """The text network, without weights, that shapes and options describe.

    Raises:
        ValueError: they describe none, or an option that ours does not have.
    """
    depth, dim = _depth_and_width(state, f"{TEXT_PREFIX}layers.", f"{TEXT_PREFIX}layernorm_embedding.bias", path)
    trunk = as_options(options.get("transformer")) or {}
    vocab_size = state[f"{TEXT_PREFIX}embed_tokens.weight"].shape[0]
    pre_norm = bool(option(trunk, "encoder.normalize_before", default=False))
    for name, needed in (("no_scale_embedding", True), ("encoder.learned_pos", True), ("activation_fn", "gelu")):
        if option(trunk, name, default=needed) != needed:
            raise ValueError(
                f"{path}: its option {name} is {option(trunk, name, default=None)!r}, only {needed!r} is known"
            )
    with torch.device("meta"):
        encoder = TextEncoder(
            dim=dim,
            vocab_size=vocab_size,
            max_positions=state[f"{TEXT_PREFIX}embed_positions.weight"].shape[0] - 2,
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
                "num_heads": int(option(trunk, "encoder.attention_heads", default=dim // 64)),
                "layer_drop": float(option(trunk, "encoder.layerdrop", default=0.0)),
            },
            pre_norm,
            input_norm=False,
        )
        return Backbone(encoder, transformer)


def _text_tree(state: State, options: dict[str, Any], cfg: dict[str, Any], path: str) -> Tree:
    backbone = text_backbone(state, options, path)
    head = depth_of(state, "encoder.regression_head.") // 2 + 1
    with torch.device("meta"):
        dim = backbone.dim
        decoder = LinearDecoder(dim, "normal") if head == 1 else MlpDecoder(dim, head, "normal")
        student = MaskTokenStudent(backbone, decoder)
    scope: Scope = "transformer" if option(options, "ema_transformer_layers_only", default=True) else "backbone"
    scale = option(options, "loss_scale", default=-1.0)
    return _tree(student, options, "rsqrt_width" if scale <= 0 else scale, scope, cfg)


def _depth_and_width(state: State, layers: str, bias: str, path: str) -> tuple[int, int]:
    depth = depth_of(state, layers)
    if depth == 0 or bias not in state:
        raise ValueError(f"{path}: no {bias if depth else layers + '0'} among its weights")
    return depth, state[bias].shape[0]


def _transformer(
    state: State,
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
        mlp_ratio=state[f"{first}fc1.weight"].shape[0] / dim,
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
) -> Tree:
    each, after = target_norms(options)
    lr = option(cfg, "optimization.lr", default=5e-4)
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
            anneal_steps=int(option(options, "ema_anneal_end_step", default=30000)),
            first_update=1,
        ),
        "optimization": Optimization(
            lr=float(lr[0] if isinstance(lr, (list, tuple)) else lr),
            betas=(0.9, 0.98),
            eps=1e-6,
            weight_decay=0.01,
            decay_all=True,
            schedule="tri_stage",
            warmup=0.03,
            hold=0.9,
        ),
        "teacher_scope": scope,
    }
    return {"class_path": "d2v_lightning.module.Data2Vec", "init_args": plain(arguments)}
