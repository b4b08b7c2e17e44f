"""Heads and decoders: student output to prediction of the teacher's representation."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from d2v_lightning.configurable import Configurable

HeadInit = Literal["vision", "default", "normal"]


class LinearDecoder(Configurable, nn.Module):
    """One linear map (1.0 images and speech).

    Args:
        dim: width D of student and targets.
        init: "vision": truncated normal of std .02 cut at one std, bias 0 (1.0 images); "default": torch's (1.0 speech);
            "normal": normal of std .02, bias 0 (1.0 text).
    """

    def __init__(self, dim: int = 768, init: HeadInit = "vision") -> None:
        super().__init__()
        self.proj = nn.Linear(dim, dim)
        initialise_head(self.proj, init)

    def forward(self, x: Tensor) -> Tensor:
        """Hidden tokens (P, D) -> predictions (P, D)."""
        return self.proj(x)


class MlpDecoder(Configurable, nn.Module):
    """Linear maps with GELU between them, 2 D wide inside (1.0 text: D -> 2 D -> D).

    Args:
        dim: width D of student and targets.
        depth: linear maps, 2 or more; one is a `LinearDecoder`.
        init: see `LinearDecoder`.
    """

    def __init__(self, dim: int = 768, depth: int = 2, init: HeadInit = "normal") -> None:
        super().__init__()
        if depth < 2:
            raise ValueError(f"depth is {depth}: an MlpDecoder has 2 linear maps or more, a LinearDecoder has one")
        widths = [dim, *[2 * dim] * (depth - 1), dim]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            initialise_head(layer, init)

    def forward(self, x: Tensor) -> Tensor:
        """Hidden tokens (P, D) -> predictions (P, D)."""
        for layer in self.layers[:-1]:
            x = F.gelu(layer(x))
        return self.layers[-1](x)


def initialise_head(linear: nn.Linear, init: HeadInit) -> None:
    """Start values of a head's linear map, see `LinearDecoder`.

    Raises:
        ValueError: there is no such `init`.
    """
    if init not in ("vision", "default", "normal"):
        raise ValueError(f"init is {init!r}: choose 'vision', 'default' or 'normal'")
    if init == "default":
        return
    if init == "vision":
        nn.init.trunc_normal_(linear.weight, std=0.02, a=-0.02, b=0.02)
    else:
        nn.init.normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
