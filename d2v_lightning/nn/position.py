"""Where a token stands: position embeddings, and biases that attention adds to its scores."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from d2v_lightning.configurable import Configurable
from d2v_lightning.nn.fixed import FixedBuffers
from d2v_lightning.support.errors import UserError, at_least


class RelativePositionBias(Configurable, FixedBuffers):
    """Learned bias for every two-dimensional offset between patches (BEiT; recipe row "1.0 image").

    Three more rows stand for class token -> patch, patch -> class token and class token -> itself. The tables start at 0.

    Args:
        grid: patches (down, across).
        num_heads: heads of the attention that adds the bias.
        num_tables: 1 = one table shared by all blocks, which is what data2vec does; otherwise one per block.
    """

    index: Tensor

    def __init__(self, grid: tuple[int, int] = (14, 14), num_heads: int = 12, num_tables: int = 1) -> None:
        super().__init__()
        at_least(1, grid=min(grid), num_heads=num_heads, num_tables=num_tables)
        self.grid = (grid[0], grid[1])
        rows = (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3
        if num_tables == 1:
            self.shared_table = nn.Parameter(torch.zeros(rows, num_heads))
        else:
            self.block_tables = nn.ParameterList([torch.zeros(rows, num_heads) for _ in range(num_tables)])
        self.register_fixed()

    def fixed_buffers(self) -> dict[str, Tensor]:
        return {"index": relative_position_index(self.grid)}

    @property
    def tables(self) -> list[nn.Parameter]:
        """The one shared table, or one per block; each (R, H)."""
        return list(self.parameters())

    def forward(self, length: int, positions: Tensor | None = None) -> list[Tensor]:
        """Biases, one (1, H, 1 + N, 1 + N) tensor per table.

        Args:
            length: tokens, the class token included.
            positions: not read: all tokens of the grid must be there, in order.

        Raises:
            ValueError: some tokens were left out, or there are more than in the grid.
        """
        if length != self.index.shape[0]:
            raise UserError(
                f"RelativePositionBias is for all {self.index.shape[0]} tokens of a {self.grid[0]}x{self.grid[1]} grid: "
                "a student that drops hidden tokens needs Alibi or position embeddings"
            )
        biases = []
        for table in self.tables:
            bias = table[self.index.reshape(-1)].reshape(length, length, -1)
            biases.append(bias.permute(2, 0, 1).unsqueeze(0).contiguous())
        return biases


class Alibi(Configurable, FixedBuffers):
    """Bias that falls with the distance of two tokens, -slope x scale x |i - j| (arXiv 2108.12409; recipe row "2.0 audio").

    The scale is learned, one per head, starts at 1 and counts as 0 where it is negative. It is symmetric: tokens see both
    sides. Extra tokens, which stand nowhere, get no bias.

    Args:
        num_heads: heads of the attention that adds the bias.
        num_scales: 1 = one set of scales shared by all blocks, which is what is released; otherwise one set per block.
    """

    slopes: Tensor

    def __init__(self, num_heads: int = 12, num_scales: int = 1) -> None:
        super().__init__()
        at_least(1, num_heads=num_heads, num_scales=num_scales)
        self.scale = nn.Parameter(torch.ones(num_scales, num_heads))
        self.register_fixed()

    def fixed_buffers(self) -> dict[str, Tensor]:
        return {"slopes": torch.tensor(alibi_slopes(self.scale.shape[1]), dtype=torch.float32)}

    @property
    def tables(self) -> list[Tensor]:
        """Scales (H,), one or one per block."""
        return list(self.scale)

    def forward(self, length: int, positions: Tensor | None = None) -> list[Tensor]:
        """Biases on the scores.

        Args:
            length: tokens, extra ones in front included.
            positions: (R, V) int64, where each token that is not extra stood in the whole sequence; one row where the bias
                is shared by the batch. None where all tokens are there and none is extra.

        Returns:
            One (R or 1, H, length, length) tensor per set of scales.
        """
        if positions is None:
            positions = torch.arange(length, device=self.scale.device)[None]
        distance = (positions[:, None, :, None] - positions[:, None, None, :]).abs()
        extra = length - positions.shape[1]
        distance = nn.functional.pad(distance, (extra, 0, extra, 0)).to(self.scale.dtype)
        return [-(self.slopes * scale.clamp(min=0.0))[:, None, None] * distance for scale in self.scale]


def alibi_slopes(num_heads: int) -> list[float]:
    """Slope of each head: 2 ** (-8 h / H) for a power of two H; otherwise those of the power below, and every other one
    of the power above."""
    power = 2 ** (num_heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * (head + 1) / power) for head in range(power)]
    if power < num_heads:
        slopes += [2.0 ** (-8.0 * (head + 1) / (2 * power)) for head in range(0, 2 * power, 2)][: num_heads - power]
    return slopes


def sine_cosine_positions(grid: tuple[int, int], dim: int) -> Tensor:
    """Fixed positions on a grid (1, N, D), row by row: sines and cosines of the column in the first half of the channels,
    of the row in the second (MAE; recipe row "2.0 image").

    Raises:
        ValueError: `dim` is not a multiple of 4.
    """
    if dim % 4:
        raise UserError(f"dim is {dim}: sine-cosine positions on a grid need a multiple of 4")
    frequency = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    row, column = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    halves = []
    for place in (column.flatten(), row.flatten()):
        angle = place[:, None].double() * frequency
        halves += [angle.sin(), angle.cos()]
    return torch.cat(halves, dim=1)[None].float()


def relative_position_index(grid: tuple[int, int]) -> Tensor:
    """Row of the bias table for each pair of tokens (1 + N, 1 + N), class token first."""
    height, width = grid
    down, across = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    down, across = down.flatten(), across.flatten()
    offset_down = down[:, None] - down[None, :] + height - 1
    offset_across = across[:, None] - across[None, :] + width - 1
    offsets = (2 * height - 1) * (2 * width - 1)
    index = torch.empty(height * width + 1, height * width + 1, dtype=torch.long)
    index[1:, 1:] = offset_down * (2 * width - 1) + offset_across
    index[0, :] = offsets
    index[:, 0] = offsets + 1
    index[0, 0] = offsets + 2
    return index


def is_index_of(grid: tuple[int, int], tensor: Tensor) -> bool:
    """Whether a tensor is `relative_position_index(grid)`."""
    tokens = 1 + grid[0] * grid[1]
    return tensor.shape == (tokens, tokens) and torch.equal(tensor.long(), relative_position_index(grid))


def resize_relative_position_table(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """A bias table (R, H) for another patch grid: bicubic over the offsets, the three class-token rows kept.

    The offset between neighbouring patches of the *same picture* shrinks when the grid grows, so the table is stretched
    over the new range of offsets rather than cropped or padded.
    """
    if old == new:
        return table
    offsets, extra = table[:-3], table[-3:]
    image = offsets.T.reshape(1, table.shape[1], 2 * old[0] - 1, 2 * old[1] - 1)
    size = (2 * new[0] - 1, 2 * new[1] - 1)
    image = nn.functional.interpolate(image.float(), size=size, mode="bicubic", align_corners=True)
    return torch.cat([image.reshape(table.shape[1], -1).T.to(table.dtype), extra])


def resize_position_embedding(embedding: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Learned positions (1, 1 + N, D) for another patch grid: bicubic over the grid, the class token's kept."""
    if old == new:
        return embedding
    extra, grid = embedding[:, :1], embedding[:, 1:]
    image = grid.reshape(1, *old, -1).permute(0, 3, 1, 2)
    image = nn.functional.interpolate(image.float(), size=new, mode="bicubic", align_corners=False)
    return torch.cat([extra, image.permute(0, 2, 3, 1).reshape(1, new[0] * new[1], -1).to(embedding.dtype)], dim=1)
