"""Hidden and visible positions index masks in row-major order, and tokens that are taken out go back where they stood."""

from __future__ import annotations

import pytest
import torch

from d2v_lightning.method.masking import random_mask
from d2v_lightning.method.positions import (
    gather_tokens,
    hidden_positions,
    restore_tokens,
    take_tokens,
    visible_positions,
)


def test_hidden_positions_leave_padding_out_and_index_flat() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(3, 2, 7, generator=generator) < 0.5
    padding = torch.arange(7) >= torch.tensor([[7], [5], [3]])
    expected = [
        (b * 2 + m) * 7 + n for b in range(3) for m in range(2) for n in range(7) if mask[b, m, n] and not padding[b, n]
    ]
    assert hidden_positions(mask, padding).tolist() == expected
    assert torch.equal(hidden_positions(mask), mask.flatten().nonzero().flatten())


def test_take_tokens_picks_what_the_mask_picks() -> None:
    x = torch.randn(3, 7, 4)
    mask = torch.rand(3, 1, 7) < 0.5
    assert torch.equal(take_tokens(x, hidden_positions(mask)), x[mask[:, 0]])


def test_hidden_positions_refuse_wrong_shapes() -> None:
    with pytest.raises(ValueError, match=r"mask \(3, 7\) torch.bool: permitted is \(B, M, N\) bool"):
        hidden_positions(torch.zeros(3, 7, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"padding_mask \(3, 9\).*permitted is \(B, N\) = \(3, 7\) bool"):
        hidden_positions(torch.zeros(3, 1, 7, dtype=torch.bool), torch.zeros(3, 9, dtype=torch.bool))


def test_dropping_and_restoring_are_inverse() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.stack([random_mask(9, 5, generator) for _ in range(6)]).reshape(2, 3, 9)
    x = torch.randn(2, 9, 4, generator=generator)
    positions = visible_positions(mask)
    seen = gather_tokens(x, positions)
    restored = restore_tokens(seen.flatten(0, 1), positions.flatten(0, 1), 9, noise_std=0.0).reshape(2, 3, 9, 4)
    assert torch.equal(restored, x[:, None].expand(-1, 3, -1, -1).masked_fill(mask[..., None], 0.0))
    hidden = mask.flatten().nonzero()[:, 0]
    assert torch.equal(take_tokens(x, hidden, 3), x[:, None].expand(-1, 3, -1, -1).flatten(0, 2)[hidden])
    noisy = restore_tokens(seen.flatten(0, 1), positions.flatten(0, 1), 9, noise_std=0.5).reshape(2, 3, 9, 4)
    assert noisy[mask].std() == pytest.approx(0.5, abs=0.1)
