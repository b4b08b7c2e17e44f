"""Images to tokens: a linear map of square patches, then a class token and, where wanted, positions."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2v_lightning.nn.encoders.encoder import Encoder, Position
from d2v_lightning.nn.fixed import FixedBuffers
from d2v_lightning.nn.normalization import Normalization, normalization_of
from d2v_lightning.nn.position import sine_cosine_positions
from d2v_lightning.support.errors import UserError, at_least

PositionKind = Literal["none", "learned", "sine_cosine"]


class ImagePosition(FixedBuffers, Position):
    """Puts the class token in front and adds positions.

    Args:
        dim: width D.
        grid: patches (down, across).
        kind: "none": data2vec 1.0, whose relative-position bias says where a patch is; "learned": a vector per position,
            class token included; "sine_cosine": fixed, for patches only (2.0).
        class_token_std: the class token starts normal with this deviation, cut at one deviation where it is below 1.
    """

    num_extra_tokens = 1

    fixed: Tensor | None

    def __init__(self, dim: int, grid: tuple[int, int], kind: PositionKind, class_token_std: float) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.embedding = nn.Parameter(torch.zeros(1, 1 + grid[0] * grid[1], dim)) if kind == "learned" else None
        self.dim, self.grid, self.kind = dim, grid, kind
        self.register_buffer("fixed", None, persistent=False)
        self.register_fixed()
        if class_token_std < 1:
            for parameter in self.parameters():
                nn.init.trunc_normal_(parameter, std=class_token_std, a=-class_token_std, b=class_token_std)
        else:
            nn.init.normal_(self.class_token, std=class_token_std)

    def fixed_buffers(self) -> dict[str, Tensor]:
        return {"fixed": sine_cosine_positions(self.grid, self.dim)} if self.kind == "sine_cosine" else {}

    def forward(self, tokens: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Patches (B, N, D), hidden ones replaced already -> the trunk's input (B, 1 + N, D). Images have no padding."""
        if self.fixed is not None:
            tokens = tokens + self.fixed
        x = torch.cat([self.class_token.to(tokens.dtype).expand(tokens.shape[0], -1, -1), tokens], dim=1)
        return x if self.embedding is None else x + self.embedding


class PatchEmbedding(nn.Conv2d):
    """A convolution whose stride is its kernel, computed as a product of each patch with a matrix.

    A product is right on every processor; oneDNN's bf16 convolution is not (see `convolution`).
    """

    def forward(self, input: Tensor) -> Tensor:
        """Images (B, C, H, W) -> (B, D, rows, columns), D innermost in memory. What is no whole patch is left out."""
        height, width = self.kernel_size
        patches = input.unfold(-2, height, height).unfold(-2, width, width)  # (B, C, rows, columns, height, width)
        flat = patches.movedim(-5, -3).flatten(-3)
        return F.linear(flat, self.weight.flatten(1), self.bias).movedim(-1, -3)


class ImageEncoder(Encoder):
    """Patch embedding of images of any size, patch size and number of channels.

    Args:
        image_size: pixels, (height, width) or one number for both.
        patch_size: pixels, likewise. Both sides of the image must be multiples of it.
        in_channels: 3 for colour, 1 for grey, any number for other sensors.
        dim: width D.
        positions: see `ImagePosition`.
        init: "vision": truncated normal of std .02 cut at one std for patches and class token, patch bias 0 (1.0); "xavier":
            uniform on the flattened patch weight, torch's default for the bias, class token normal of std 1 (2.0).
        mean: of each channel, of values in 0..1: what pictures were normalised with. None where nobody has said yet: the
            first `ImageDataModule` that trains the network, or an `ImageClassifier`, then says it. It goes wherever the
            network goes.
        std: likewise.

    Raises:
        ValueError: the image is not a whole number of patches, an unknown choice, or see `normalization_of`.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_channels: int = 3,
        dim: int = 768,
        positions: PositionKind = "none",
        init: Literal["vision", "xavier"] = "vision",
        mean: list[float] | None = None,
        std: list[float] | None = None,
    ) -> None:
        super().__init__()
        if positions not in get_args(PositionKind) or init not in ("vision", "xavier"):
            raise UserError(
                f"positions is {positions!r}, init {init!r}: choose {', '.join(get_args(PositionKind))}; vision or xavier"
            )
        at_least(1, in_channels=in_channels, dim=dim)
        self.image_size, self.patch_size = _pair(image_size), _pair(patch_size)
        self.in_channels, self.dim = in_channels, dim
        self._normalization = normalization_of(mean, std, in_channels)
        self.grid = patch_grid(self.image_size, self.patch_size)
        self.patch_embed = PatchEmbedding(in_channels, dim, kernel_size=self.patch_size, stride=self.patch_size)
        if init == "vision":
            nn.init.trunc_normal_(self.patch_embed.weight, std=0.02, a=-0.02, b=0.02)
            assert self.patch_embed.bias is not None
            nn.init.zeros_(self.patch_embed.bias)
        else:
            nn.init.xavier_uniform_(self.patch_embed.weight.view(dim, -1))
        self.position = ImagePosition(dim, self.grid, positions, 0.02 if init == "vision" else 1.0)

    @property
    def normalization(self) -> Normalization | None:
        """What pictures are to be normalised with; None where that is not known. Setting it changes `config` too."""
        return self._normalization

    @normalization.setter
    def normalization(self, value: Normalization | None) -> None:
        self._normalization = None if value is None else normalization_of(value.mean, value.std, self.in_channels)
        mean, std = (None, None) if value is None else (list(values) for values in value)
        self.config["init_args"].update(mean=mean, std=std)

    def features(self, inputs: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, None]:
        """Images (B, C, H, W) -> patches (B, N, D), row by row, each knowing nothing of the others. No padding.

        Raises:
            ValueError: the images are not of this encoder's size.
        """
        if padding_mask is not None:
            raise UserError("images have no padding: leave padding_mask out")
        expected = (self.in_channels, *self.image_size)
        if tuple(inputs.shape[1:]) != expected:
            raise UserError(f"images are {tuple(inputs.shape[1:])} (C, H, W), the encoder was built for {expected}")
        return self.patch_embed(inputs).flatten(2).transpose(1, 2), None


def patch_grid(image_size: tuple[int, int], patch_size: tuple[int, int]) -> tuple[int, int]:
    """Number of patches (down, across).

    Raises:
        ValueError: a patch has no pixel, or a side of the image is not a multiple of the patch.
    """
    if min(patch_size) < 1:
        raise UserError(f"patch_size is {patch_size[0]}x{patch_size[1]}: both sides must be 1 pixel or more")
    if any(side % patch or side < patch for side, patch in zip(image_size, patch_size, strict=True)):
        raise UserError(
            f"image_size {image_size[0]}x{image_size[1]} is not a whole number of patches of "
            f"{patch_size[0]}x{patch_size[1]}: make both sides multiples of patch_size"
        )
    return image_size[0] // patch_size[0], image_size[1] // patch_size[1]


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
