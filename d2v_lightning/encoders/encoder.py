"""What an encoder of any modality must offer: local tokens, and a module that tells each token where it stands."""

from __future__ import annotations

from torch import Tensor, nn

from d2v_lightning.configurable import Configurable


class Position(nn.Module):
    """Adds positions to tokens and puts extra tokens in front of them. This one does neither.

    Attributes:
        num_extra_tokens: E, tokens in front of the maskable ones (a class token).
    """

    num_extra_tokens: int = 0

    def forward(self, tokens: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Tokens (B, N, D), hidden ones replaced already, and their padding (B, N), True = padding -> (B, E + N, D)."""
        return tokens


class Encoder(Configurable, nn.Module):
    """Base of all encoders: subclass it, set `dim` and `position`, write `features`, and the rest of data2vec works.

    Attributes:
        dim: width D of the tokens.
        position: applied to the tokens after hiding, before the trunk.
    """

    dim: int
    position: Position

    def features(self, inputs: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Inputs to local, mask-free tokens.

        Args:
            inputs: a clean batch, see `Batch`.
            padding_mask: as in `Batch`, True = padding.

        Returns:
            Tokens (B, N, D) and their padding (B, N) bool, True = padding, or None.
        """
        raise NotImplementedError(f"{type(self).__name__} must define features(inputs, padding_mask)")
