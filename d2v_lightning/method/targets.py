"""Targets: layer results of the teacher, each normalised, averaged over the top K, normalised again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from d2v_lightning.configurable import Configurable
from d2v_lightning.nn.transformer import LayerResult
from d2v_lightning.support.errors import UserError

Norm = Literal["layer", "instance", "batch", "position"]


class Targets(Configurable):
    """How the teacher's layers become the target (paper 1.0, section 3.3).

    Args:
        average_top_k_layers: K, how many blocks from the top are averaged; or a list of the blocks, 0-based.
        layer_results: "block" averages block outputs (1.0 images), "ffn" FFN outputs before the residual (all others).
        norm_each: norms without parameters applied to each layer result, in this order. Ours for small data:
            ["position", "layer"]. What follows from the position alone is taken out first, so that targets which are a
            function of position carry nothing, and the layer norm then brings the rest, however small, to one size; the
            other way round, targets and loss would shrink as the teacher collapses.
        norm_after: the same for the average. The released image command has a layer norm here, the paper does not say.

    Raises:
        ValueError: a norm or a layer result that does not exist, or no layer at all.
    """

    def __init__(
        self,
        average_top_k_layers: int | list[int] = 6,
        layer_results: Literal["block", "ffn"] = "block",
        norm_each: Sequence[Norm] = ("layer",),
        norm_after: Sequence[Norm] = ("layer",),
    ) -> None:
        unknown = [norm for norm in (*norm_each, *norm_after) if norm not in get_args(Norm)]
        if unknown:
            raise UserError(f"unknown norm {unknown[0]!r}: choose from {', '.join(get_args(Norm))}")
        if layer_results not in ("block", "ffn"):
            raise UserError(f"layer_results is {layer_results!r}: choose 'block' or 'ffn'")
        if not average_top_k_layers:
            raise UserError("average_top_k_layers is empty: average at least one block")
        self.average_top_k_layers = average_top_k_layers
        self.layer_results = layer_results
        self.norm_each, self.norm_after = tuple(norm_each), tuple(norm_after)

    def layers(self, depth: int, prenet_depth: int = 0) -> list[int]:
        """The averaged blocks of a trunk with `depth` blocks, 0-based and ascending.

        Raises:
            ValueError: the trunk has fewer blocks above the lowest `prenet_depth`, which are never averaged.
        """
        top = self.average_top_k_layers
        layers = list(range(depth - top, depth)) if isinstance(top, int) else sorted(top)
        if layers[0] < prenet_depth or layers[-1] >= depth:
            below = f" of which {prenet_depth} (prenet_depth) are never averaged" if prenet_depth else ""
            raise UserError(f"average_top_k_layers is {top}, but the trunk has {depth} blocks{below}")
        return layers

    def select(self, results: Sequence[LayerResult]) -> list[Tensor]:
        """Block or FFN outputs, whichever is averaged."""
        return [result.block if self.layer_results == "block" else result.ffn for result in results]

    def __call__(self, layer_results: Sequence[Tensor], padding_mask: Tensor | None = None) -> Tensor:
        """K layer results (B, N, D) and their padding (B, N), True = padding -> targets (B, N, D) in float32.

        What stands at padding is neither zero nor of use.
        """
        total: Tensor | None = None
        for result in layer_results:
            result = normalize(result.float(), self.norm_each, padding_mask)
            total = result if total is None else total + result
        assert total is not None, "no layer result given"
        return normalize(total / len(layer_results), self.norm_after, padding_mask)


def normalize(x: Tensor, norms: Sequence[Norm], padding_mask: Tensor | None = None) -> Tensor:
    """Norms without parameters on x (B, N, D): "layer" over D, "instance" over N, "batch" over B and N.

    "position" is no norm in the full sense: it subtracts the mean over B at each of the N positions and leaves the scale
    alone. Like "batch" it depends on what else is in the batch of this process: not summed over ranks or accumulated
    micro-batches. Where a single sample reaches a position, nothing is left there.

    Statistics leave out padding, (B, N) with True = padding, so that a sample alone and padded in a batch is the same.

    Raises:
        ValueError: "position" on a single sample, which would be all zeros.
    """
    for norm in norms:
        if norm == "layer":
            x = F.layer_norm(x, x.shape[-1:])
        elif norm == "position":
            if len(x) == 1:
                raise UserError(
                    "the norm 'position' of a batch of one leaves nothing: use a batch of 2 or more samples"
                )
            inside = x.new_ones(x.shape[:2], dtype=torch.bool) if padding_mask is None else ~padding_mask
            x = x - mean_inside(x, inside, over=0)
        elif padding_mask is not None:
            x = _norm_inside(x, ~padding_mask, over=1 if norm == "instance" else (0, 1))
        elif norm == "instance":
            x = F.instance_norm(x.transpose(1, 2)).transpose(1, 2)
        else:
            x = F.batch_norm(x.transpose(1, 2), None, None, training=True).transpose(1, 2)
    return x


def _norm_inside(x: Tensor, inside: Tensor, over: int | tuple[int, int]) -> Tensor:
    """Mean 0, variance 1 of x (B, N, D) over the tokens `inside` (B, N), True = counts."""
    x = x - mean_inside(x, inside, over)
    return x * torch.rsqrt(mean_inside(x.square(), inside, over) + 1e-5)


def mean_inside(x: Tensor, inside: Tensor, over: int | tuple[int, int]) -> Tensor:
    """Mean of x (B, N, D) over the tokens `inside` (B, N), True = counts; the dimensions `over` are kept as 1."""
    weights = inside[..., None].to(x.dtype)
    return (x * weights).sum(dim=over, keepdim=True) / weights.sum(dim=over, keepdim=True).clamp(min=1)
