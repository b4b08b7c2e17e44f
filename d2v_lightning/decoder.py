"""Heads and decoders: student output to prediction of the teacher's representation."""

from __future__ import annotations

from torch import Tensor, nn

from d2v_lightning.configurable import Configurable


class LinearDecoder(Configurable, nn.Module):
    """One linear map (1.0 images and speech).

    Args:
        dim: width D of student and targets.
        init: "vision": truncated normal of std .02 cut at one std, bias 0 (1.0 images); "default": torch's (1.0 speech).
    """

    def __init__(self, dim: int = 768, init: str = "vision") -> None:
        super().__init__()
        if init not in ("vision", "default"):
            raise ValueError(f"init is {init!r}: choose 'vision' or 'default'")
        self.proj = nn.Linear(dim, dim)
        if init == "vision":
            nn.init.trunc_normal_(self.proj.weight, std=0.02, a=-0.02, b=0.02)
            nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Hidden tokens (P, D) -> predictions (P, D)."""
        return self.proj(x)
