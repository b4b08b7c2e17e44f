"""Data2VecText of the `transformers` library, and RoBERTa, which is the same network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from d2v_lightning.checkpoints.labels import labels_of
from d2v_lightning.checkpoints.tables import Names, State, weight_and_bias
from d2v_lightning.flavour import rank_zero_info
from d2v_lightning.nn.backbone import Backbone
from d2v_lightning.nn.encoders.text import TextEncoder
from d2v_lightning.nn.transformer import Transformer
from d2v_lightning.support.errors import UserError

TYPES = {"data2vec-text": "Data2VecTextConfig", "roberta": "RobertaConfig"}
PREFIXES = ("data2vec_text.", "roberta.")
DERIVED = re.compile(r"^embeddings\.(position_ids|token_type_ids)$")
HEAD = re.compile(r"^(pooler|classifier|lm_head|qa_outputs)\..*$")

_THEIRS = "encoder.layer.#."
_TYPES, _POSITIONS = "embeddings.token_type_embeddings.weight", "embeddings.position_embeddings.weight"
NAMES: Names = {
    "encoder.embedding.weight": ("embeddings.word_embeddings.weight",),
    "encoder.position.embedding.weight": (_POSITIONS,),
    **weight_and_bias("encoder.position.norm", "embeddings.LayerNorm"),
    **weight_and_bias(
        "transformer.blocks.#.attn.qkv",
        *(f"{_THEIRS}attention.self.{part}" for part in ("query", "key", "value")),
    ),
    **weight_and_bias("transformer.blocks.#.attn.proj", f"{_THEIRS}attention.output.dense"),
    **weight_and_bias("transformer.blocks.#.norm1", f"{_THEIRS}attention.output.LayerNorm"),
    **weight_and_bias("transformer.blocks.#.mlp.fc1", f"{_THEIRS}intermediate.dense"),
    **weight_and_bias("transformer.blocks.#.mlp.fc2", f"{_THEIRS}output.dense"),
    **weight_and_bias("transformer.blocks.#.norm2", f"{_THEIRS}output.LayerNorm"),
}


def names(backbone: Backbone) -> Names:
    """Our names and theirs."""
    return NAMES


def is_head(weight: str, inside: bool, config: Any) -> bool:
    """Whether a weight, without the model's prefix, belongs to a head."""
    return bool(HEAD.match(weight))


def follows(weight: str, tensor: Tensor, config: Any) -> bool:
    """Whether what older files hold beside the weights is what it must be: positions in order, and tokens of type 0."""
    if tensor.shape != (1, config.max_position_embeddings):
        return False
    positions = torch.arange(config.max_position_embeddings)[None]
    return torch.equal(tensor.long(), positions if weight.endswith("position_ids") else torch.zeros_like(positions))


def adjust(state: State, backbone: Backbone) -> State:
    """Token types are folded into the positions: every token of data2vec and RoBERTa is of type 0."""
    types = state.pop(_TYPES, None)
    if types is not None and types[0].any():
        rank_zero_info("the embedding of token type 0 was added to every position, where it has the same effect")
        state[_POSITIONS] = state[_POSITIONS] + types[0]
    return state


def extra_weights(backbone: Backbone) -> State:
    """What their network has and ours does not need: one token type, of no effect."""
    return {_TYPES: torch.zeros(1, backbone.dim)}


def task(head: State, config: Any, directory: Path) -> tuple[str, dict[str, Any], Names] | None:
    """Class, arguments and names of our module for their head; None where there is none that ours knows."""
    if "classifier.out_proj.weight" not in head:
        return None
    dropout = config.classifier_dropout if config.classifier_dropout is not None else config.hidden_dropout_prob
    labels = head["classifier.out_proj.weight"].shape[0]
    names = labels_of(config, labels, directory) if labels > 1 else None
    arguments = {"task": "custom", "num_classes": labels, "head_dropout": dropout, "class_names": names}
    return (
        "GLUEClassifier",
        arguments,
        weight_and_bias("dense", "classifier.dense") | weight_and_bias("out_proj", "classifier.out_proj"),
    )


def to_task(module: Any, config: Any, prefix: str) -> tuple[Names, tuple[str, ...]]:
    """Make `config` that of a classifier; names of its head, and the beginnings of those weights that theirs has not."""
    config.architectures = ["Data2VecTextForSequenceClassification"]
    config.num_labels = module.kind.num_classes
    config.classifier_dropout = module.dropout.p
    if module.class_names:
        config.id2label = dict(enumerate(module.class_names))
        config.label2id = {name: number for number, name in enumerate(module.class_names)}
    return weight_and_bias("dense", "classifier.dense") | weight_and_bias("out_proj", "classifier.out_proj"), ()


def untrained(config: Any, name: str) -> Backbone:
    """The network that a configuration of theirs describes."""
    if config.hidden_act != "gelu":
        raise UserError(f"{name}: hidden_act is {config.hidden_act!r}, our trunk has 'gelu' only")
    if getattr(config, "is_decoder", False):
        raise UserError(f"{name}: it is a decoder (is_decoder), ours is an encoder")
    encoder = TextEncoder(
        dim=config.hidden_size,
        vocab_size=config.vocab_size,
        max_positions=config.max_position_embeddings - config.pad_token_id - 1,
        pad_id=config.pad_token_id,
        mask_id=config.vocab_size - 1,
        norm_eps=config.layer_norm_eps,
    )
    transformer = Transformer(
        dim=config.hidden_size,
        depth=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        mlp_ratio=config.intermediate_size / config.hidden_size,
        norm="post",
        norm_eps=config.layer_norm_eps,
        final_norm=False,
        qkv_bias="qkv",
        layer_scale=None,
        dropout=float(config.hidden_dropout_prob),
        attention_dropout=float(config.attention_probs_dropout_prob),
        input_dropout=float(config.hidden_dropout_prob),
        init="normal",
    )
    return Backbone(encoder, transformer)


def config(backbone: Backbone) -> Any:
    """The `Data2VecTextConfig` of a backbone."""
    from transformers import Data2VecTextConfig

    encoder, options = backbone.encoder, backbone.transformer.config["init_args"]
    assert isinstance(encoder, TextEncoder)
    needed: dict[str, Any] = {
        "norm": "post",
        "qkv_bias": "qkv",
        "layer_scale": None,
        "position_bias": None,
        "final_norm": False,
    }
    needed |= {"final_norm": False, "input_norm": False, "drop_path": 0.0, "activation_dropout": 0.0, "layer_drop": 0.0}
    needed["norm_eps"] = encoder.config["init_args"]["norm_eps"]
    for option, value in needed.items():
        if options[option] != value:
            raise UserError(f"transformers has no such network: {option} is {options[option]!r}, not {value!r}")
    return Data2VecTextConfig(
        architectures=["Data2VecTextModel"],
        vocab_size=encoder.vocab_size,
        hidden_size=backbone.dim,
        num_hidden_layers=backbone.transformer.depth,
        num_attention_heads=options["num_heads"],
        intermediate_size=backbone.get_parameter("transformer.blocks.0.mlp.fc1.weight").shape[0],
        hidden_dropout_prob=options["dropout"],
        attention_probs_dropout_prob=options["attention_dropout"],
        layer_norm_eps=options["norm_eps"],
        max_position_embeddings=encoder.max_positions + encoder.pad_id + 1,
        type_vocab_size=1,
        pad_token_id=encoder.pad_id,
        bos_token_id=0,
        eos_token_id=2,
    )
