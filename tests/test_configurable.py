"""Arguments that no network can be made of: one line that names them, before anything is computed."""

from __future__ import annotations

from typing import Any

import pytest

from d2v_lightning import (
    Alibi,
    AudioEncoder,
    ConvDecoder,
    ImageEncoder,
    LinearDecoder,
    Optimization,
    RegressionLoss,
    RelativePositionBias,
    TextEncoder,
    Transformer,
)
from d2v_lightning.support.errors import UserError


@pytest.mark.parametrize(
    ("kind", "arguments", "said"),
    [
        (Transformer, {"dim": None}, "dim is None: Transformer needs a whole number"),
        (Transformer, {"depth": 1.5}, "depth is 1.5: Transformer needs a whole number"),
        (Transformer, {"dropout": -1.0}, "dropout -1.0: it is a probability"),
        (Transformer, {"dim": 16, "num_heads": 2, "mlp_ratio": -1.0}, "mlp_ratio is -1.0"),
        (Transformer, {"layer_scale": "x"}, "layer_scale is 'x': Transformer needs a number"),
        (RegressionLoss, {"scale": None}, "scale is None: RegressionLoss needs a value"),
        (Optimization, {"betas": [0.9, float("nan")]}, r"betas is \[0.9, nan\]: Optimization needs finite numbers"),
        (
            ImageEncoder,
            {"image_size": [32]},
            r"image_size is \[32\]: ImageEncoder needs a whole number or two whole numbers",
        ),
        (ImageEncoder, {"in_channels": -1}, "in_channels -1: permitted is 1 or more"),
        (AudioEncoder, {"dim": -16}, "dim -16: permitted is 1 or more"),
        (AudioEncoder, {"position_groups": 0}, "position_groups 0"),
        (TextEncoder, {"dim": 0}, "dim 0: permitted is 1 or more"),
        (LinearDecoder, {"dim": True}, "dim is True: LinearDecoder needs a whole number"),
        (ConvDecoder, {"grid": (4, 0)}, "grid 0: permitted is 1 or more"),
        (RelativePositionBias, {"num_heads": -1}, "num_heads -1: permitted is 1 or more"),
        (Alibi, {"num_heads": 0}, "num_heads 0: permitted is 1 or more"),
    ],
)
def test_what_no_network_can_be_made_of(kind: type, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        kind(**arguments)


def test_a_whole_number_is_a_number() -> None:
    transformer = Transformer(dim=8, depth=1, num_heads=1, layer_scale=1)
    assert transformer.get_parameter("blocks.0.scale1.gamma").tolist() == [1.0] * 8
