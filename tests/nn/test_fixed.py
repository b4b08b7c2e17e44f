"""Networks that are built without memory, moved, pickled: what follows from the settings is there again."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from d2v_lightning import (
    Alibi,
    AudioEncoder,
    Backbone,
    ImageEncoder,
    LogMelEncoder,
    RelativePositionBias,
    TextEncoder,
    Transformer,
)

CONVS = [[8, 10, 5], [8, 8, 8], [8, 8, 8]]


def image(positions: Any = "none", bias: Any = RelativePositionBias) -> tuple[Backbone, Tensor]:
    table = {"position_bias": RelativePositionBias((4, 4), 2)} if bias is RelativePositionBias else {}
    encoder = ImageEncoder(16, 4, 3, 32, positions)
    return Backbone(encoder, Transformer(32, 2, 2, **table)), torch.randn(2, 3, 16, 16)


def speech(depth: int, **trunk: Any) -> tuple[Backbone, Tensor]:
    encoder = AudioEncoder(32, CONVS, position_depth=depth, position_groups=4)
    return Backbone(encoder, Transformer(32, 2, 2, **trunk)), torch.randn(2, 6400)


KINDS: dict[str, Callable[[], tuple[Backbone, Tensor]]] = {
    "image": image,
    "image_v2": lambda: image("sine_cosine", None),
    "speech_wav2vec": lambda: speech(1),
    "speech_v2": lambda: speech(5, position_bias=Alibi(2)),
    "log_mel": lambda: (
        Backbone(LogMelEncoder(32, 20, position_groups=4), Transformer(32, 2, 2)),
        torch.randn(2, 6400),
    ),
    "text": lambda: (
        Backbone(TextEncoder(32, 40, 20, mask_id=39), Transformer(32, 2, 2)),
        torch.randint(3, 38, (2, 9)),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("assign", [False, True])
def test_a_network_without_memory_gets_weights_and_works(kind: str, assign: bool) -> None:
    torch.manual_seed(0)
    whole, inputs = KINDS[kind]()
    with torch.device("meta"):
        empty, _ = KINDS[kind]()
    if not assign:
        empty.to_empty(device="cpu")
        for buffer in whole.buffers():  # and of one that has lost what it had
            buffer.zero_()
        whole.load_state_dict(whole.state_dict())
    empty.load_state_dict(whole.state_dict(), assign=assign)
    with torch.no_grad():
        assert torch.equal(empty.eval()(inputs), whole.eval()(inputs))
    again, _ = KINDS[kind]()
    for ours, theirs in zip(whole.buffers(), again.buffers(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_can_be_pickled_and_copied(kind: str) -> None:
    torch.manual_seed(0)
    whole, inputs = KINDS[kind]()
    with torch.no_grad():
        expected = whole.eval()(inputs)
        for other in (pickle.loads(pickle.dumps(whole)), copy.deepcopy(whole)):
            assert torch.equal(other(inputs), expected)
            other.load_state_dict(whole.state_dict())
            assert list(other.state_dict()) == list(whole.state_dict())
            for parameter in other.parameters():
                parameter.zero_()
            assert not torch.equal(other(inputs), expected), "the copy has weights of its own, and reads them"
        assert torch.equal(whole(inputs), expected)
