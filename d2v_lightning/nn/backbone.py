"""Backbone: a modality encoder and the shared Transformer. It is what survives pre-training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from d2v_lightning.configurable import Configurable
from d2v_lightning.nn.encoders import Encoder, Position
from d2v_lightning.nn.position import RelativePositionBias
from d2v_lightning.nn.transformer import LayerResult, Transformer
from d2v_lightning.support.errors import UserError


class Features(NamedTuple):
    """Features of a batch: `layers`, one (B, N, D) per requested block; `extra`, the same blocks' class tokens (B, E, D);
    `padding_mask` (B, N) bool, True = padding, or None; `lengths` (B,) int64, tokens that are not padding."""

    layers: list[Tensor]
    extra: list[Tensor]
    padding_mask: Tensor | None
    lengths: Tensor


class Backbone(Configurable, nn.Module):
    """Encoder and Transformer, usable as a plain `nn.Module`.

    Raises:
        ValueError: encoder and transformer, or the transformer's relative positions, do not fit each other.
    """

    def __init__(self, encoder: Encoder, transformer: Transformer) -> None:
        super().__init__()
        if encoder.dim != transformer.dim:
            raise UserError(f"encoder.dim is {encoder.dim}, transformer.dim is {transformer.dim}: make them equal")
        bias = transformer.position_bias
        if isinstance(bias, RelativePositionBias) and bias.grid != getattr(encoder, "grid", None):
            made = getattr(encoder, "grid", "no grid of")
            raise UserError(f"position_bias.grid is {bias.grid}, but the encoder makes {made} patches")
        self.encoder, self.transformer = encoder, transformer
        self.licence: str | None = None  # of published weights that it started from, SPDX
        self.tokenizer: dict[str, Any] | None = None  # that a text model was trained with, see `StoredTokenizer`

    @property
    def dim(self) -> int:
        return self.transformer.dim

    @property
    def num_extra_tokens(self) -> int:
        """Tokens in front of the maskable ones (a class token)."""
        return self.encoder.position.num_extra_tokens

    def contextualize(
        self, tokens: Tensor, padding_mask: Tensor | None = None, keep: Sequence[int] = ()
    ) -> tuple[Tensor, list[LayerResult]]:
        """Positions, then the trunk.

        Args:
            tokens: (B, N, D), hidden ones replaced already.
            padding_mask: (B, N) bool, True = padding.
            keep: blocks whose results are wanted.

        Returns:
            Output and layer results, all (B, E + N, D) with the E extra tokens first.
        """
        return contextualize(self.encoder.position, self.transformer, tokens, padding_mask, keep)

    def forward(self, inputs: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Clean inputs -> output of the last block after the final norm (B, E + N, D), extra tokens first."""
        tokens, padding_mask = self.encoder.features(inputs, padding_mask)
        return self.contextualize(tokens, padding_mask)[0]

    @torch.no_grad()
    def features(
        self, inputs: Tensor, padding_mask: Tensor | None = None, layers: Sequence[int] | None = None
    ) -> Features:
        """Block outputs of unmasked inputs, in eval mode and without gradients: the same input gives the same features.

        Args:
            inputs: a clean batch, see `Batch`.
            padding_mask: as in `Batch`, True = padding.
            layers: 0-based blocks, negative ones from the end; None for all. The final norm is not applied.

        Raises:
            ValueError: there is no such block.
        """
        depth = self.transformer.depth
        wanted = range(depth) if layers is None else layers
        if any(not -depth <= layer < depth for layer in wanted):
            raise UserError(f"layers {list(wanted)} asked for, the trunk has blocks 0 to {depth - 1}")
        wanted = [layer % depth for layer in wanted]
        with evaluating(self):
            tokens, padding_mask = self.encoder.features(inputs, padding_mask)
            _, results = self.contextualize(tokens, padding_mask, keep=wanted)
        block = dict(zip(sorted(set(wanted)), (result.block for result in results), strict=True))
        extra = self.num_extra_tokens
        batch, length = tokens.shape[:2]
        lengths = (
            torch.full((batch,), length, device=tokens.device) if padding_mask is None else (~padding_mask).sum(dim=1)
        )
        return Features(
            layers=[block[layer][:, extra:] for layer in wanted],
            extra=[block[layer][:, :extra] for layer in wanted],
            padding_mask=padding_mask,
            lengths=lengths,
        )


def contextualize(
    position: Position, transformer: Transformer, tokens: Tensor, padding_mask: Tensor | None, keep: Sequence[int]
) -> tuple[Tensor, list[LayerResult]]:
    """`Backbone.contextualize` with the parts given one by one, because a teacher may own some and borrow others."""
    x = position(tokens, padding_mask)
    extra = x.shape[1] - tokens.shape[1]
    if padding_mask is not None and extra:
        padding_mask = torch.cat([padding_mask.new_zeros(padding_mask.shape[0], extra), padding_mask], dim=1)
    # So that a bias on distance counts from the first token on, and leaves the extra ones out.
    positions = torch.arange(tokens.shape[1], device=tokens.device)[None] if extra else None
    return transformer(x, padding_mask, keep, positions)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode for a while; every sub-module then returns to the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
