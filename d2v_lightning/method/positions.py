"""Rows picked by position: what is hidden, what is visible, and tokens there and back.

In every mask `True` = hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor

from d2v_lightning.support.errors import UserError


def hidden_positions(mask: Tensor, padding_mask: Tensor | None = None) -> Tensor:
    """Where the loss is taken: hidden tokens that are not padding.

    Args:
        mask: (B, M, N) bool, True = hidden.
        padding_mask: (B, N) bool at token level, True = padding.

    Returns:
        (P,) int64 ascending flat positions in (B, M, N).

    Raises:
        ValueError: shapes or types do not fit.
    """
    if mask.dim() != 3 or mask.dtype != torch.bool:
        raise UserError(f"mask {tuple(mask.shape)} {mask.dtype}: permitted is (B, M, N) bool")
    if padding_mask is not None:
        if padding_mask.shape != (mask.shape[0], mask.shape[2]) or padding_mask.dtype != torch.bool:
            raise UserError(
                f"padding_mask {tuple(padding_mask.shape)} {padding_mask.dtype}: permitted is (B, N) = "
                f"({mask.shape[0]}, {mask.shape[2]}) bool"
            )
        mask = mask & ~padding_mask[:, None, :]
    return mask.flatten().nonzero().squeeze(1)


def visible_positions(mask: Tensor) -> Tensor:
    """Which tokens stay visible.

    Args:
        mask: (B, M, N) bool, True = hidden, the same number in every row.

    Returns:
        (B, M, V) int64, ascending in every row.

    Raises:
        ValueError: rows hide different numbers.
    """
    counts = mask.sum(dim=-1)
    if (counts != counts.flatten()[0]).any():
        raise UserError(
            f"rows of the mask hide {int(counts.min())} to {int(counts.max())} tokens: a student that drops hidden tokens "
            "needs the same number in every row (speech of different lengths: set data.mask_ratio)"
        )
    visible = (~mask).nonzero()[:, 2]
    return visible.reshape(*mask.shape[:2], len(visible) // counts.numel())


def take_tokens(x: Tensor, positions: Tensor, num_masks: int = 1) -> Tensor:
    """Gathers tokens of x (B, N, D) by their flat position (P,) in (B, M, N), M = `num_masks` -> (P, D)."""
    if num_masks > 1:
        length = x.shape[1]
        positions = positions // (num_masks * length) * length + positions % length
    return x.flatten(0, 1).index_select(0, positions)


def gather_tokens(x: Tensor, positions: Tensor) -> Tensor:
    """Tokens of x (B, N, D) at `positions` (B, M, V) of each sample -> (B, M, V, D)."""
    batch, num_masks, visible = positions.shape
    flat = positions.reshape(batch, num_masks * visible, 1).expand(-1, -1, x.shape[2])
    return x.gather(1, flat).reshape(batch, num_masks, visible, -1)


def restore_tokens(x: Tensor, positions: Tensor, length: int, noise_std: float) -> Tensor:
    """Puts tokens back where they stood and noise everywhere else.

    Args:
        x: visible tokens (R, V, D).
        positions: (R, V) int64, where each of them stood.
        length: N.
        noise_std: standard deviation of the noise; 0 for zeros.

    Returns:
        (R, N, D).
    """
    rows, _, width = x.shape
    filler = (
        x.new_zeros(rows, length, width) if noise_std == 0 else x.new_empty(rows, length, width).normal_(0, noise_std)
    )
    return filler.scatter(1, positions[..., None].expand(-1, -1, width), x)
