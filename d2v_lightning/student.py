"""Students: a masked input to predictions of what the teacher saw at the hidden positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from d2v_lightning.backbone import Backbone
from d2v_lightning.configurable import Configurable
from d2v_lightning.decoder import LinearDecoder
from d2v_lightning.masking import take_tokens


class MaskTokenStudent(Configurable, nn.Module):
    """Student of data2vec 1.0: a learned vector stands in for each hidden token, and the trunk sees the whole sequence.

    Args:
        backbone: what is pre-trained.
        decoder: maps the trunk's output at hidden positions to predictions.
    """

    def __init__(self, backbone: Backbone, decoder: LinearDecoder) -> None:
        super().__init__()
        self.backbone, self.decoder = backbone, decoder
        self.mask_token = nn.Parameter(torch.empty(1, 1, backbone.dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)

    def forward(self, tokens: Tensor, padding_mask: Tensor | None, mask: Tensor, hidden: Tensor) -> Tensor:
        """Predict the hidden tokens.

        Args:
            tokens: local features (B, N, D).
            padding_mask: (B, N) bool, True = padding, or None.
            mask: (B, 1, N) bool, True = hidden.
            hidden: (P,) int64, flat positions in (B, N) at which predictions are wanted.

        Returns:
            Predictions (P, D).

        Raises:
            ValueError: the mask is not of this batch's shape.
        """
        batch, length, _ = tokens.shape
        if mask.shape != (batch, 1, length):
            raise ValueError(
                f"mask is {tuple(mask.shape)}, the student needs (B, M, N) = {(batch, 1, length)}: "
                "does the datamodule mask the same patch grid, with one mask a sample?"
            )
        tokens = torch.where(mask[:, 0, :, None], self.mask_token.to(tokens.dtype), tokens)
        x, _ = self.backbone.contextualize(tokens, padding_mask)
        return self.decoder(take_tokens(x[:, self.backbone.num_extra_tokens :], hidden))
