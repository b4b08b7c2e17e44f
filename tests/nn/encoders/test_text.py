"""TextEncoder: RoBERTa's look-up and positions, where padding takes no place, and ids that it cannot look up."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from d2v_lightning import TextEncoder
from d2v_lightning.support.errors import UserError


def encoder(**options: Any) -> TextEncoder:
    torch.manual_seed(0)
    made = TextEncoder(16, 40, 20, mask_id=39, **options)
    torch.nn.init.normal_(made.position.norm.bias)  # so that a norm of nothing is not 0
    return made


def test_positions_count_from_the_place_after_the_padding_ids() -> None:
    text, ids = encoder(pad_id=3), torch.tensor([[5, 6, 7]])
    tokens, padding = text.features(ids)
    assert padding is None
    table = text.position.embedding.weight
    assert table.shape == (20 + 3 + 1, 16)
    expected = text.position.norm(text.embedding.weight[ids] + table[4:7])
    torch.testing.assert_close(text.position(tokens), expected)


def test_padding_takes_no_place_wherever_it_stands() -> None:
    text, ids = encoder(), torch.tensor([[5, 6, 7]])
    alone = text.position(text.features(ids)[0])
    padded = torch.tensor([[1, 5, 1, 6, 7, 1]])
    mask = padded == 1
    placed = text.position(*text.features(padded, mask))
    torch.testing.assert_close(placed[:, [1, 3, 4]], alone)
    assert not placed[mask].any(), "what stands at padding is 0"


def test_released_2_0_leaves_at_padding_what_the_norm_makes_of_it() -> None:
    text = encoder(padding="released_2")
    padded = torch.tensor([[5, 1]])
    placed = text.position(*text.features(padded, padded == 1))
    torch.testing.assert_close(placed[0, 1], text.position.norm.bias)


def test_padding_starts_at_zero_and_is_never_trained() -> None:
    text = encoder()
    padded = torch.tensor([[5, 1]])
    text.position(*text.features(padded, padded == 1)).square().sum().backward()
    for table in (text.embedding, text.position.embedding):
        assert not table.weight[1].any()
        assert table.weight.grad is not None
        assert not table.weight.grad[1].any()
    assert text.embedding.weight.grad is not None
    assert text.embedding.weight.grad[5].any()


def test_what_cannot_be_looked_up_is_refused() -> None:
    with pytest.raises(UserError, match=r"the text has 21 tokens, the encoder max_positions 20"):
        encoder().features(torch.ones(1, 21, dtype=torch.int64))
    for wrong in (torch.ones(1, 3), torch.ones(3, dtype=torch.int64)):
        with pytest.raises(UserError, match=r"\(B, T\) integers are needed"):
            encoder().features(wrong)
    with pytest.raises(UserError, match="mask_id is 40: it must be below vocab_size 40"):
        TextEncoder(16, 40, 20, mask_id=40)
    with pytest.raises(UserError, match="padding is 'leaky': choose from exact, released_1, released_2"):
        encoder(padding="leaky")
