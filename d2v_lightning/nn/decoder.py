"""Heads and decoders: student output to prediction of the teacher's representation."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from d2v_lightning.configurable import Configurable
from d2v_lightning.nn.convolution import Conv1d, Conv2d
from d2v_lightning.support.errors import UserError, at_least, probabilities

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
        at_least(1, dim=dim)
        self.dim = dim
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
            raise UserError(f"depth is {depth}: an MlpDecoder has 2 linear maps or more, a LinearDecoder has one")
        at_least(1, dim=dim)
        self.dim = dim
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


class ConvDecoder(Configurable, nn.Module):
    """Decoder of data2vec 2.0: convolutions over the restored sequence, each with a layer norm without parameters and GELU.

    Args:
        dim: width D of student and targets.
        grid: patches (down, across) for 3x3-like convolutions over a picture; None for one-dimensional ones over a sequence.
        depth, kernel, width, groups: of the convolutions.
        residual: add a convolution's input where it is as wide (all but text).
        projection_depth: linear maps at the end; those inside are `projection_ratio` x `width` wide (text: 2).
        projection_ratio: see `projection_depth`.
        input_dropout: on the student's output before hidden tokens are filled in (speech, text: .1).
        init: of the linear maps, see `LinearDecoder`: "default" (images, speech) or "normal" (text, whose `TextEncoder` does
            not reset them, so that `init_bert_params` stands). Convolutions start with torch's values.

    Raises:
        ValueError: sizes that are not positive, or groups that do not divide the widths.
    """

    def __init__(
        self,
        dim: int = 768,
        grid: tuple[int, int] | None = None,
        depth: int = 6,
        kernel: int = 3,
        width: int = 768,
        groups: int = 16,
        residual: bool = True,
        projection_depth: int = 1,
        projection_ratio: float = 2.0,
        input_dropout: float = 0.0,
        init: HeadInit = "default",
    ) -> None:
        super().__init__()
        at_least(1, dim=dim, grid=None if grid is None else min(grid))
        probabilities(input_dropout=input_dropout)
        if int(width * projection_ratio) < 1:
            raise UserError(f"projection_ratio is {projection_ratio}: the projection must be one wide or more")
        if min(depth, kernel, width, groups, projection_depth) < 1 or dim % groups or width % groups:
            raise UserError(
                f"decoder of depth {depth}, kernel {kernel}, width {width}, groups {groups}, projection_depth "
                f"{projection_depth}: all start at 1, and the groups must divide width and dim {dim}"
            )
        self.grid = None if grid is None else (grid[0], grid[1])
        self.dim, self.width, self.residual = dim, width, residual
        self.input_dropout = nn.Dropout(input_dropout)
        conv = Conv1d if grid is None else Conv2d
        self.convs = nn.ModuleList(
            conv(dim if layer == 0 else width, width, kernel, padding=kernel // 2, groups=groups)
            for layer in range(depth)
        )
        widths = [width, *[int(width * projection_ratio)] * (projection_depth - 1), dim]
        self.proj = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        for layer in self.proj:
            assert isinstance(layer, nn.Linear)
            initialise_head(layer, init)

    def forward(self, x: Tensor, positions: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Predict tokens of restored sequences.

        Args:
            x: (R, N, D), the student's output at visible places, filler at hidden ones.
            positions: (P,) int64, flat positions in (R, N) at which predictions are wanted.
            padding_mask: (R, N) bool, True = padding, which is kept out of the convolutions.

        Returns:
            Predictions (P, D).
        """
        rows, length, _ = x.shape
        for conv in self.convs:
            if padding_mask is not None:
                x = x.masked_fill(padding_mask[..., None], 0.0)
            made = x.transpose(1, 2)
            if self.grid is None:
                made = conv(made)[..., :length]  # an even kernel makes one too many
            else:
                made = conv(made.unflatten(2, self.grid))[..., : self.grid[0], : self.grid[1]].flatten(2)
            made = F.gelu(F.layer_norm(made.transpose(1, 2), (self.width,)))
            x = made + x if self.residual and made.shape == x.shape else made
        x = x.reshape(rows * length, -1).index_select(0, positions)
        for layer in self.proj[:-1]:
            x = F.gelu(layer(x))
        return self.proj[-1](x)


def initialise_head(linear: nn.Linear, init: HeadInit) -> None:
    """Start values of a head's linear map, see `LinearDecoder`.

    Raises:
        ValueError: there is no such `init`.
    """
    if init not in ("vision", "default", "normal"):
        raise UserError(f"init is {init!r}: choose 'vision', 'default' or 'normal'")
    if init == "default":
        return
    if init == "vision":
        nn.init.trunc_normal_(linear.weight, std=0.02, a=-0.02, b=0.02)
    else:
        nn.init.normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
