"""Students: a masked input to predictions of what the teacher saw at the hidden positions."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from d2v_lightning.configurable import Configurable
from d2v_lightning.method.positions import gather_tokens, restore_tokens, take_tokens, visible_positions
from d2v_lightning.nn.backbone import Backbone
from d2v_lightning.nn.decoder import ConvDecoder, LinearDecoder, MlpDecoder
from d2v_lightning.nn.encoders import Encoder, ImageEncoder, TextEncoder
from d2v_lightning.support.errors import UserError


class Predictions(NamedTuple):
    """What a student says: `hidden` (P, D) about the hidden tokens, `extra` (B x M, E, D) the trunk's output at extras."""

    hidden: Tensor
    extra: Tensor


class MaskTokenStudent(Configurable, nn.Module):
    """Student of data2vec 1.0: a learned vector stands in for each hidden token, and the trunk sees the whole sequence.

    Args:
        backbone: what is pre-trained.
        decoder: maps the trunk's output at hidden positions to predictions.
        mask_init: start of the learned vector: "vision": truncated normal of std .02 (1.0 images); "uniform": in [0, 1)
            (1.0 speech). Text has none of its own: it reads the embedding of `<mask>`.

    Raises:
        ValueError: backbone and decoder differ in width, or an unknown choice.
    """

    def __init__(
        self,
        backbone: Backbone,
        decoder: LinearDecoder | MlpDecoder,
        mask_init: Literal["vision", "uniform"] = "vision",
    ) -> None:
        super().__init__()
        if mask_init not in ("vision", "uniform"):
            raise UserError(f"mask_init is {mask_init!r}: choose 'vision' or 'uniform'")
        _refuse_other_width(decoder.dim, backbone)
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
        visible: Tensor | None = None,
    ) -> Predictions:
        """Predict the hidden tokens.

        Args:
            tokens: local features (B, N, D).
            padding_mask: (B, N) bool, True = padding, or None.
            mask: (B, 1, N) bool, True = hidden.
            hidden: (P,) int64, flat positions in (B, N) at which predictions are wanted.
            corrupted: (B, 1, T) ids that are read in place of `tokens` with hidden ones replaced (text).
            visible: not read, every token goes through the trunk.

        Raises:
            ValueError: the mask is not of this batch's shape.
        """
        batch, length, _ = tokens.shape
        if mask.shape != (batch, 1, length):
            raise UserError(
                f"mask is {tuple(mask.shape)}, the student needs (B, M, N) = {(batch, 1, length)}: "
                "does the datamodule mask the same patch grid, frames or tokens, with one mask a sample?"
            )
        if corrupted is not None:
            tokens, _ = self.backbone.encoder.features(corrupted[:, 0])
        else:
            tokens = torch.where(mask[:, 0, :, None], self._mask_token(tokens.device).to(tokens.dtype), tokens)
        x, _ = self.backbone.contextualize(tokens, padding_mask)
        extra = self.backbone.num_extra_tokens
        return Predictions(self.decoder(take_tokens(x[:, extra:], hidden)), x[:, :extra])

    def _mask_token(self, device: torch.device) -> Tensor:
        """What stands in for a hidden token (1, 1, D): learned, or the embedding of `<mask>`."""
        if self.mask_token is not None:
            return self.mask_token
        encoder = self.backbone.encoder
        assert isinstance(encoder, TextEncoder)
        return encoder.embedding(torch.full((1, 1), encoder.mask_id, device=device))


class VisibleStudent(Configurable, nn.Module):
    """Student of data2vec 2.0: the trunk sees visible tokens only, under M masks a sample; a decoder fills in the rest.

    Args:
        backbone: what is pre-trained.
        decoder: maps trunk outputs and noise to predictions.
        mask_noise_std: standard deviation of the noise that stands at hidden places when the decoder begins, in training; in
            evaluation nothing is random, and 0 stands there.

    Raises:
        ValueError: backbone and decoder differ in width or grid, or a negative deviation.
    """

    def __init__(self, backbone: Backbone, decoder: ConvDecoder, mask_noise_std: float = 0.01) -> None:
        super().__init__()
        if mask_noise_std < 0:
            raise UserError(f"mask_noise_std is {mask_noise_std}: it must not be negative")
        _refuse_other_width(decoder.dim, backbone)
        _refuse_other_grid(decoder.grid, backbone.encoder)
        self.backbone, self.decoder, self.mask_noise_std = backbone, decoder, mask_noise_std

    def forward(
        self,
        tokens: Tensor,
        padding_mask: Tensor | None,
        mask: Tensor,
        hidden: Tensor,
        corrupted: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> Predictions:
        """Predict the hidden tokens under every mask.

        Args:
            tokens: local features (B, N, D).
            padding_mask: (B, N) bool, True = padding, or None.
            mask: (B, M, N) bool, True = hidden, the same number in every row.
            hidden: (P,) int64, flat positions in (B, M, N) at which predictions are wanted.
            corrupted: must be None: what is hidden is dropped, not replaced.
            visible: (B, M, V) int64, the visible positions of `mask`; counted here where the batch lacks them.

        Raises:
            ValueError: the mask is not of this batch's shape, its rows hide different numbers, every token or none, or
                `corrupted` is given.
        """
        batch, length, _ = tokens.shape
        num_masks = mask.shape[1]
        if mask.shape != (batch, num_masks, length):
            raise UserError(
                f"mask is {tuple(mask.shape)}, the student needs (B, M, N) = {(batch, num_masks, length)}: "
                "does the datamodule mask the same patch grid, frames or tokens?"
            )
        if corrupted is not None:
            raise UserError(
                "data2vec 2.0 drops hidden tokens: set the datamodule's leave_unmasked_prob and random_token_prob to 0"
            )
        visible = visible_positions(mask) if visible is None else visible
        if visible.shape[-1] in (0, length):
            hides = f"all {length} tokens" if visible.shape[-1] == 0 else f"none of {length} tokens"
            raise UserError(
                f"every row of the mask hides {hides}: a student needs some to see and some to predict, so change how much "
                "the datamodule hides"
            )
        x, padding = self._drop_hidden(tokens, padding_mask, mask, visible)
        extra = self.backbone.num_extra_tokens
        trunk_padding = padding if padding is None or not extra else nn.functional.pad(padding, (extra, 0))
        x, _ = self.backbone.transformer(
            x, trunk_padding, positions=visible.flatten(0, 1), input_dropped=self._drops_input_once
        )
        noise_std = self.mask_noise_std if self.training else 0.0
        filled = restore_tokens(self.decoder.input_dropout(x[:, extra:]), visible.flatten(0, 1), length, noise_std)
        if padding_mask is None or self.backbone.encoder.padding != "exact":
            return Predictions(self.decoder(filled, hidden), x[:, :extra])
        padding = padding_mask.repeat_interleave(num_masks, dim=0)
        return Predictions(self.decoder(filled, hidden, padding), x[:, :extra])

    @property
    def _drops_input_once(self) -> bool:
        """Whether the trunk's input dropout acts on a whole sample, alike for all its masks: in text, where it belongs to the
        embedding (`TextLocalEncoder` of 2.0). Elsewhere it follows the trunk's own norm, in each of the B x M rows."""
        backbone = self.backbone
        return isinstance(backbone.transformer.input_norm, nn.Identity) and not backbone.encoder.position.mixes_tokens

    def _drop_hidden(
        self, tokens: Tensor, padding_mask: Tensor | None, mask: Tensor, visible: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """The trunk's input (B x M, E + V, D) and the padding of its visible tokens (B x M, V)."""
        num_masks, extra = mask.shape[1], self.backbone.num_extra_tokens
        position = self.backbone.encoder.position
        padding = (
            None if padding_mask is None else gather_tokens(padding_mask[..., None], visible).flatten(0, 1)[..., 0]
        )
        if position.mixes_tokens:  # what is hidden must not reach its neighbours
            masked = tokens[:, None].masked_fill(mask[..., None], 0.0).flatten(0, 1)
            whole = None if padding_mask is None else padding_mask.repeat_interleave(num_masks, dim=0)
            placed = position(masked, whole)
            seen = gather_tokens(placed[:, extra:], visible.flatten(0, 1)[:, None])
            return torch.cat([placed[:, :extra], seen[:, 0]], dim=1), padding
        placed = position(tokens, padding_mask)
        if self._drops_input_once:
            placed = self.backbone.transformer.input_dropout(placed)
        seen = gather_tokens(placed[:, extra:], visible).flatten(0, 1)
        first = placed[:, :extra].repeat_interleave(num_masks, dim=0)
        return torch.cat([first, seen], dim=1), padding


def _refuse_other_width(width: int, backbone: Backbone) -> None:
    if width != backbone.dim:
        raise UserError(f"decoder.dim is {width}, backbone.dim is {backbone.dim}: make them equal")


def _refuse_other_grid(grid: tuple[int, int] | None, encoder: Encoder) -> None:
    """A decoder's grid must be the encoder's; only an encoder of one's own may do without where it makes one."""
    made: tuple[int, int] | None = getattr(encoder, "grid", None)
    if (grid is None and not isinstance(encoder, ImageEncoder)) or (made is not None and grid == tuple(made)):
        return
    tokens = "a sequence without a grid" if made is None else f"a grid of {tuple(made)}"
    remedy = "null" if made is None else list(made)
    raise UserError(
        f"decoder.grid is {grid}, but {type(encoder).__name__} makes {tokens}: set decoder.grid to {remedy}"
    )
