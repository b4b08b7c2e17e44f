"""The regression loss between predictions and targets at hidden positions."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from d2v_lightning.configurable import Configurable
from d2v_lightning.support.errors import UserError


class RegressionLoss(Configurable):
    """Smooth L1 or squared error, averaged over hidden tokens.

    Args:
        beta: error at which smooth L1 turns from quadratic to linear; 0 for the plain squared error.
            Images 1.0: 2, text 1.0: 4, speech and all of 2.0: 0.
        over_width: "mean" over the D channels (1.0 images) or "sum".
        scale: factor on the loss; "rsqrt_width" for 1 / sqrt(D) (speech, 2.0 images).

    Raises:
        ValueError: `beta` is negative, or an unknown choice.
    """

    def __init__(
        self,
        beta: float = 2.0,
        over_width: Literal["mean", "sum"] = "mean",
        scale: float | Literal["rsqrt_width"] = 1.0,
    ) -> None:
        if beta < 0:
            raise UserError(f"beta is {beta}: it must be 0 (squared error) or positive (smooth L1)")
        if over_width not in ("mean", "sum"):
            raise UserError(f"over_width is {over_width!r}: choose 'mean' or 'sum'")
        if isinstance(scale, str) and scale != "rsqrt_width":
            raise UserError(f"scale is {scale!r}: give a number, or 'rsqrt_width'")
        self.beta, self.over_width, self.scale = beta, over_width, scale

    def __call__(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Predictions and targets (P, D) -> scalar, the mean over the P tokens. Computed in float32."""
        error, per_token = self._errors(predictions, targets)
        return error.sum() * (per_token / max(1, predictions.shape[0]))

    def one_by_one(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Predictions and targets (P, D) -> the loss of each token (P,), in float32."""
        error, per_token = self._errors(predictions, targets)
        return error.sum(dim=-1) * per_token

    def _errors(self, predictions: Tensor, targets: Tensor) -> tuple[Tensor, float]:
        """Errors (P, D), and the factor on their sum over D."""
        predictions, targets = predictions.float(), targets.float()
        if self.beta == 0:
            error = F.mse_loss(predictions, targets, reduction="none")
        else:
            error = F.smooth_l1_loss(predictions, targets, beta=self.beta, reduction="none")
        width = predictions.shape[-1]
        scale = width**-0.5 if self.scale == "rsqrt_width" else float(self.scale)
        return error, scale * (1.0 if self.over_width == "sum" else 1.0 / width)
