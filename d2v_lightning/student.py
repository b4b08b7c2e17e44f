"""Students: a masked input to predictions of what the teacher saw at the hidden positions."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from d2v_lightning.backbone import Backbone
from d2v_lightning.configurable import Configurable
from d2v_lightning.decoder import LinearDecoder, MlpDecoder
from d2v_lightning.encoders import TextEncoder
from d2v_lightning.masking import take_tokens


class MaskTokenStudent(Configurable, nn.Module):
    """Student of data2vec 1.0: a learned vector stands in for each hidden token, and the trunk sees the whole sequence.

    Args:
        backbone: what is pre-trained.
        decoder: maps the trunk's output at hidden positions to predictions.
        mask_init: start of the learned vector: "vision": truncated normal of std .02 (1.0 images); "uniform": in [0, 1)
            (1.0 speech). Text has none of its own: it reads the embedding of `<mask>`.
    """

    def __init__(
        self,
        backbone: Backbone,
        decoder: LinearDecoder | MlpDecoder,
        mask_init: Literal["vision", "uniform"] = "vision",
    ) -> None:
        super().__init__()
        if mask_init not in ("vision", "uniform"):
            raise ValueError(f"mask_init is {mask_init!r}: choose 'vision' or 'uniform'")
        self.backbone, self.decoder = backbone, decoder
        self.mask_token: nn.Parameter | None = None
        if not isinstance(backbone.encoder, TextEncoder):
            self.mask_token = nn.Parameter(torch.empty(1, 1, backbone.dim))
            if mask_init == "vision":
                nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)
            else:
                nn.init.uniform_(self.mask_token)

    def forward(
        self,
        tokens: Tensor,
        padding_mask: Tensor | None,
        mask: Tensor,
        hidden: Tensor,
        corrupted: Tensor | None = None,
    ) -> Tensor:
        """Predict the hidden tokens.

        Args:
            tokens: local features (B, N, D).
            padding_mask: (B, N) bool, True = padding, or None.
            mask: (B, 1, N) bool, True = hidden.
            hidden: (P,) int64, flat positions in (B, N) at which predictions are wanted.
            corrupted: (B, 1, T) ids that are read in place of `tokens` with hidden ones replaced (text).

        Returns:
            Predictions (P, D).

        Raises:
            ValueError: the mask is not of this batch's shape.
        """
        batch, length, _ = tokens.shape
        if mask.shape != (batch, 1, length):
            raise ValueError(
                f"mask is {tuple(mask.shape)}, the student needs (B, M, N) = {(batch, 1, length)}: "
                "does the datamodule mask the same patch grid, frames or tokens, with one mask a sample?"
            )
        if corrupted is not None:
            tokens, _ = self.backbone.encoder.features(corrupted[:, 0])
        else:
            tokens = torch.where(mask[:, 0, :, None], self._mask_token().to(tokens.dtype), tokens)
        x, _ = self.backbone.contextualize(tokens, padding_mask)
        return self.decoder(take_tokens(x[:, self.backbone.num_extra_tokens :], hidden))

    def _mask_token(self) -> Tensor:
        if self.mask_token is not None:
            return self.mask_token
        encoder = self.backbone.encoder
        assert isinstance(encoder, TextEncoder)
        return encoder.mask_token
