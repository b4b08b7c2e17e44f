"""Token ids to tokens as in RoBERTa: a look-up, then learned positions and a norm."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor, nn

from d2v_lightning.nn.encoders.encoder import Encoder, Padding, Position
from d2v_lightning.support.errors import UserError, at_least


class TextPosition(Position):
    """Adds a learned vector per position and norms the sum.

    Positions count the tokens that are not padding from `pad_id` + 1 on, as RoBERTa's do; padding reads row `pad_id`.

    Args:
        dim: width D.
        max_positions: longest text in tokens.
        pad_id: id of the padding token.
        padding: see `Encoder`; 2.0 as released leaves at padding what the norm makes of it, otherwise it becomes 0.
    """

    def __init__(self, dim: int, max_positions: int, pad_id: int, padding: Padding, norm_eps: float) -> None:
        super().__init__()
        self.pad_id, self.padding = pad_id, padding
        self.embedding = nn.Embedding(max_positions + pad_id + 1, dim, padding_idx=pad_id)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.zeros_(self.embedding.weight[pad_id])
        self.norm = nn.LayerNorm(dim, eps=norm_eps)

    def forward(self, tokens: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        if padding_mask is None:
            places = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
            return self.norm(tokens + self.embedding(self.pad_id + places))
        places = (~padding_mask).cumsum(dim=1).masked_fill(padding_mask, 0)
        x = self.norm(tokens + self.embedding(self.pad_id + places))
        return x if self.padding == "released_2" else x.masked_fill(padding_mask[..., None], 0.0)


class TextEncoder(Encoder):
    """Embedding of token ids.

    The defaults are data2vec 1.0 for text, Base, with RoBERTa's vocabulary (configs/pretrain/text_base.yaml).

    Args:
        dim: width D.
        vocab_size: number of ids.
        max_positions: longest text in tokens.
        pad_id, mask_id: ids of padding and `<mask>`. RoBERTa's tokenizer has `<mask>` last.
        padding: see `Encoder`.
        norm_eps: epsilon of the norm after positions.

    Raises:
        ValueError: an id lies outside the vocabulary, or no position is left.
    """

    def __init__(
        self,
        dim: int = 768,
        vocab_size: int = 50265,
        max_positions: int = 512,
        pad_id: int = 1,
        mask_id: int = 50264,
        padding: Padding = "exact",
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if padding not in get_args(Padding):
            raise UserError(f"padding is {padding!r}: choose from {', '.join(get_args(Padding))}")
        for name, value in (("pad_id", pad_id), ("mask_id", mask_id)):
            if not 0 <= value < vocab_size:
                raise UserError(f"{name} is {value}: it must be below vocab_size {vocab_size}")
        at_least(1, dim=dim)
        if max_positions < 1:
            raise UserError(f"max_positions is {max_positions}: a text has 1 token or more")
        self.dim, self.vocab_size, self.max_positions = dim, vocab_size, max_positions
        self.pad_id, self.mask_id, self.padding = pad_id, mask_id, padding
        self.embedding = nn.Embedding(vocab_size, dim, padding_idx=pad_id)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.zeros_(self.embedding.weight[pad_id])
        self.position = TextPosition(dim, max_positions, pad_id, padding, norm_eps)

    def features(self, inputs: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Ids (B, T) -> embeddings (B, T, D); the padding passes through.

        Raises:
            ValueError: the ids are not (B, T) integers, or more than `max_positions`.
        """
        if inputs.ndim != 2 or inputs.is_floating_point():
            raise UserError(f"token ids are {tuple(inputs.shape)} {inputs.dtype}: (B, T) integers are needed")
        if inputs.shape[1] > self.max_positions:
            raise UserError(
                f"the text has {inputs.shape[1]} tokens, the encoder max_positions {self.max_positions}: cut it shorter"
            )
        return self.embedding(inputs), padding_mask
