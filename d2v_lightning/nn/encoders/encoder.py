"""What an encoder of any modality must offer: local tokens, and a module that tells each token where it stands."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from d2v_lightning.configurable import Configurable

Padding = Literal["exact", "released_1", "released_2"]


class Position(nn.Module):
    """Adds positions to tokens and puts extra tokens in front of them. This one does neither.

    Attributes:
        num_extra_tokens: E, tokens in front of the maskable ones (a class token).
        mixes_tokens: whether what is added to a token depends on its neighbours. Where it does not, a student that drops
            hidden tokens adds positions once per sample rather than once per mask.
    """

    num_extra_tokens: int = 0
    mixes_tokens: bool = False

    def forward(self, tokens: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Tokens (B, N, D), hidden ones replaced already, and their padding (B, N), True = padding -> (B, E + N, D)."""
        return tokens


class Encoder(Configurable, nn.Module):
    """Base of all encoders: subclass it, set `dim` and `position`, write `features`, and the rest of data2vec works.

    Attributes:
        dim: width D of the tokens.
        position: applied to the tokens after hiding, before the trunk.
        padding: "exact": a sample alone and padded in a batch is the same, in features, targets, predictions and loss.
            "released_1" and "released_2" do as Meta's code of data2vec 1.0 and 2.0, under which the released weights were
            trained: padding leaks into convolutions and norms over time, and where it is hidden it is scored.
    """

    dim: int
    position: Position
    padding: Padding = "exact"

    def features(self, inputs: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Inputs to local, mask-free tokens.

        Args:
            inputs: a clean batch, see `Batch`.
            padding_mask: as in `Batch`, True = padding.

        Returns:
            Tokens (B, N, D) and their padding (B, N) bool, True = padding, or None.
        """
        raise NotImplementedError(f"{type(self).__name__} must define features(inputs, padding_mask)")
