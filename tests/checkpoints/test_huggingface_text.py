"""The text layout of transformers: token types are folded into positions, and what follows from the sizes is recognised."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Data2VecTextConfig

from d2v_lightning import Backbone, TextEncoder, Transformer
from d2v_lightning.checkpoints.huggingface_text import adjust, config, extra_weights, follows, is_head, task, untrained
from d2v_lightning.support.errors import UserError

TYPES, POSITIONS = "embeddings.token_type_embeddings.weight", "embeddings.position_embeddings.weight"


def backbone(**options: Any) -> Backbone:
    usual: dict[str, Any] = {
        "norm": "post", "norm_eps": 1e-5, "final_norm": False, "qkv_bias": "qkv", "layer_scale": None,
        "dropout": 0.25, "input_dropout": 0.25, "init": "normal",
    }  # fmt: skip
    return Backbone(TextEncoder(16, 30, 12, mask_id=29), Transformer(16, 2, 2, **{**usual, **options}))


def test_a_configuration_describes_the_network_that_describes_it() -> None:
    ours = backbone()
    made = config(ours)
    assert made.max_position_embeddings == 12 + 2, "positions are counted from the padding's id on"
    again = untrained(made, "there")
    assert again.encoder.config == ours.encoder.config
    assert again.transformer.config == ours.transformer.config
    with pytest.raises(UserError, match=r"transformers has no such network: drop_path is 0\.1, not 0\.0"):
        config(backbone(drop_path=0.1))
    with pytest.raises(UserError, match="there: it is a decoder"):
        untrained(Data2VecTextConfig(is_decoder=True), "there")


def test_the_type_of_every_token_is_added_to_its_position() -> None:
    state = {TYPES: torch.tensor([[1.0, 2.0], [5.0, 5.0]]), POSITIONS: torch.ones(3, 2)}
    assert adjust(state, backbone())[POSITIONS].tolist() == [[2.0, 3.0]] * 3
    assert TYPES not in state
    assert extra_weights(backbone())[TYPES].tolist() == [[0.0] * 16], "on the way back it has no effect"


def test_positions_in_order_and_tokens_of_type_0_follow_from_the_sizes() -> None:
    sizes = SimpleNamespace(max_position_embeddings=5)
    order, zeros = torch.arange(5)[None], torch.zeros(1, 5, dtype=torch.int64)
    assert follows("embeddings.position_ids", order, sizes)
    assert not follows("embeddings.position_ids", order.flip(1), sizes)
    assert follows("embeddings.token_type_ids", zeros, sizes)
    assert not follows("embeddings.token_type_ids", zeros[:, :4], sizes)


def test_a_head_is_known_by_its_names_and_says_how_many_classes() -> None:
    made = Data2VecTextConfig(num_labels=3, classifier_dropout=0.5)
    assert task({}, made, Path("there")) is None
    found = task({"classifier.out_proj.weight": torch.zeros(3, 16)}, made, Path("there"))
    assert found is not None
    assert found[:2] == (
        "GLUEClassifier",
        {"task": "custom", "num_classes": 3, "head_dropout": 0.5, "class_names": None},
    )
    assert found[2]["dense.bias"] == ("classifier.dense.bias",)
    assert is_head("lm_head.bias", True, made)
    assert not is_head("encoder.layer.0.output.dense.bias", True, made)
