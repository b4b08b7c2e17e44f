"""Which tokens the student may not see.

In every mask `True` = hidden. All randomness comes from the generator that the caller hands in.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from d2v_lightning.support.errors import UserError

ATTEMPTS_PER_BLOCK = 10


def block_mask(
    grid: tuple[int, int],
    num_masked: int,
    generator: torch.Generator | None = None,
    min_block: int = 16,
    max_block: int | None = None,
    min_aspect: float = 0.3,
) -> Tensor:
    """Hides exactly `num_masked` patches in rectangular blocks (BEiT, arXiv 2106.08254, algorithm 1).

    Blocks of random area and shape are laid down, overlaps allowed, for as long as one that fits turns up within ten
    attempts. What is then still missing grows onto the edges of the blocks: BEiT's own generator stops there and hides
    up to eight patches fewer, which makes the rows of a batch unequal.

    data2vec 1.0 for images: 120 of 14 x 14 patches, blocks of 16 patches or more.

    Args:
        grid: (rows, columns) of patches; N = rows x columns.
        num_masked: how many patches to hide, 1..N-1.
        generator: source of all randomness; `None` is torch's global one.
        min_block: smallest area of a block, 1..num_masked.
        max_block: largest area of a block; by default whatever is still to be hidden.
        min_aspect: height / width of a block lies between this and its inverse.

    Returns:
        (N,) bool in row-major order, True = hidden.

    Raises:
        ValueError: an argument is out of its range.
    """
    rows, columns = grid
    if rows < 1 or columns < 1 or rows * columns < 2:
        raise UserError(f"grid {rows}x{columns}: permitted are grids of at least two patches")
    num_patches = rows * columns
    if not 1 <= num_masked < num_patches:
        raise UserError(f"num_masked {num_masked}: permitted is 1..{num_patches - 1} in a {rows}x{columns} grid")
    if not 1 <= min_block <= num_masked:
        raise UserError(f"min_block {min_block}: permitted is 1..num_masked = {num_masked}")
    if max_block is not None and max_block < min_block:
        raise UserError(f"max_block {max_block}: permitted is min_block = {min_block} or more")
    if not 0 < min_aspect <= 1:
        raise UserError(f"min_aspect {min_aspect}: permitted is 0 < min_aspect <= 1")

    # The mask is one integer with a bit per patch: a block is set, and its new patches are counted, in two operations.
    draw = _uniforms(generator)
    hidden, missing = 0, num_masked
    while missing:
        block = _fitting_block(grid, hidden, missing, min_block, min(missing, max_block or missing), min_aspect, draw)
        if not block:
            break
        hidden |= block
        missing = num_masked - hidden.bit_count()
    while missing:
        edge = _set_bits(_edge(grid, hidden))
        hidden |= 1 << edge[int(next(draw) * len(edge))]
        missing -= 1

    return _as_mask(hidden, num_patches)


@lru_cache(maxsize=4096)
def num_span_masked(length: int, mask_prob: float, mask_length: int, open_end: bool = False) -> int:
    """How many tokens spans hide on average where fairseq draws them: `mask_prob` x length / `mask_length` distinct starts,
    overlaps allowed. 1.0 speech: .065 starts a frame, spans of 10, about 49 % hidden; 1.0 text: .35 in spans of 4, 31 %.

    Args:
        length: N.
        mask_prob: share that would be hidden if spans never overlapped.
        mask_length: of a span.
        open_end: spans may start anywhere and are cut at the end (1.0 text, fairseq/data/mask_tokens_dataset.py). Otherwise
            they end before the last token (speech, `compute_mask_indices` of fairseq/data/data_utils.py).

    Returns:
        1..N-1. Where a sequence is hardly longer than a span it is half of it.

    Raises:
        ValueError: an argument is out of its range.
    """
    if length < 2 or not 0 < mask_prob < 1 or mask_length < 1:
        raise UserError(
            f"length {length}, mask_prob {mask_prob}, mask_length {mask_length}: permitted are a length of at least 2, a "
            "probability between 0 and 1, and spans of at least 1"
        )
    starts = length if open_end else length - mask_length
    if length - mask_length < mask_length:
        return max(1, length // 2)
    drawn = mask_prob * length / mask_length
    # How many starts reach a place, counted over places.
    covering = Counter(
        min(place + 1, mask_length, length if open_end else length - 1 - place) for place in range(length)
    )
    expected = sum(places * (1.0 - _chance_of_none(number, starts, drawn)) for number, places in covering.items())
    return min(length - 1, max(1, round(expected)))


def drawn_span_count(
    length: int, mask_prob: float, mask_length: int, min_spans: int = 0, generator: torch.Generator | None = None
) -> int:
    """How many tokens of one row fairseq's spans hide before it makes the rows of a batch equal, drawn at random.

    That is `compute_mask_indices` (fairseq/data/data_utils.py): `mask_prob` x length / `mask_length` distinct starts, rounded
    up or down by chance, and spans that may overlap. With `require_same_masks`, its default, a batch then hides in every row
    as many as in the row with the fewest: the smallest of these numbers over the rows of the batch.

    Args:
        length: N, 2 or more.
        mask_prob: share that would be hidden if spans never overlapped, between 0 and 1.
        mask_length: of a span.
        min_spans: least spans of a row (`min_masks`: 1 over time, 0 over channels).
        generator: source of all randomness; `None` is torch's global one.

    Returns:
        0..N-1. Where a sequence is hardly longer than a span it is half of it, as in `num_span_masked`.
    """
    if length - mask_length < mask_length:
        return num_span_masked(length, mask_prob, mask_length)
    spans = int(mask_prob * length / mask_length + float(torch.rand((), generator=generator)))
    starts = torch.randperm(length - mask_length, generator=generator)[: max(min_spans, spans)].sort().values
    if not len(starts):
        return 0
    return min(length - 1, mask_length + int(starts.diff().clamp_max(mask_length).sum()))


def span_mask(
    length: int,
    num_masked: int,
    mask_length: int,
    generator: torch.Generator | None = None,
    overhang: int = 0,
    open_end: bool = False,
) -> Tensor:
    """Hides exactly `num_masked` tokens in spans, overlaps allowed.

    Fairseq makes the rows of a batch equal by uncovering single frames at random, which breaks the spans. Here spans are
    laid down until the count is reached, and the last one alone is cut to fit, at the side where it stays attached.

    Args:
        length: N.
        num_masked: how many to hide, 1..N-1.
        mask_length: of a span; shorter where `num_masked` is.
        generator: source of all randomness; `None` is torch's global one.
        overhang: by how many tokens a span may stick out at either end. 1.0: none, so that the ends are hidden less; 2.0:
            half a span.
        open_end: a span may start anywhere and is cut at the end (1.0 text), so that the beginning alone is hidden less.

    Returns:
        (N,) bool, True = hidden.

    Raises:
        ValueError: an argument is out of its range.
    """
    if not 1 <= num_masked < length:
        raise UserError(f"num_masked {num_masked}: permitted is 1..{length - 1} of {length} tokens")
    if mask_length < 1:
        raise UserError(f"mask_length {mask_length}: permitted is 1 or more")
    span = min(mask_length, num_masked)
    hidden, missing = 0, num_masked
    everything, overhang = (1 << length) - 1, min(overhang, span - 1)
    past_end = span - 1 if open_end else overhang
    for start in (torch.randperm(length - span + 1 + overhang + past_end, generator=generator) - overhang).tolist():
        whole = ((1 << span) - 1) << (start + overhang) >> overhang
        fresh = whole & everything & ~hidden
        if (excess := fresh.bit_count() - missing) > 0:
            places = _set_bits(fresh)
            attached_below = places[0] > 0 and hidden >> (places[0] - 1) & 1
            kept = places[:-excess] if attached_below or start % 2 else places[excess:]
            fresh = sum(1 << place for place in kept)
        hidden |= fresh
        missing -= fresh.bit_count()
        if missing == 0:
            break
    return _as_mask(hidden, length)


def random_mask(length: int, num_masked: int, generator: torch.Generator | None = None) -> Tensor:
    """Hides exactly `num_masked` tokens, each set of them equally likely (2.0 text) -> (N,) bool, True = hidden.

    Raises:
        ValueError: `num_masked` is not 1..N-1.
    """
    if not 1 <= num_masked < length:
        raise UserError(f"num_masked {num_masked}: permitted is 1..{length - 1} of {length} tokens")
    mask = torch.zeros(length, dtype=torch.bool)
    mask[torch.randperm(length, generator=generator)[:num_masked]] = True
    return mask


def inverse_block_mask(
    grid: tuple[int, int], num_masked: int, block: int = 3, generator: torch.Generator | None = None
) -> Tensor:
    """Hides exactly `num_masked` patches, all but squares of `block` x `block` around random patches (2.0 images).

    Squares are cut at the edges of the picture, may overlap, and are laid down until enough is visible; the last one alone
    is cut to fit. Base: 157 of 14 x 14 patches hidden, Large 147, Huge 192 of 16 x 16.

    Args:
        grid: (rows, columns) of patches; N = rows x columns.
        num_masked: how many to hide, 1..N-1.
        block: side of a square in patches.
        generator: source of all randomness; `None` is torch's global one.

    Returns:
        (N,) bool in row-major order, True = hidden.

    Raises:
        ValueError: an argument is out of its range.
    """
    rows, columns = grid
    if not 1 <= num_masked < rows * columns:
        raise UserError(f"num_masked {num_masked}: permitted is 1..{rows * columns - 1} in a {rows}x{columns} grid")
    if block < 1:
        raise UserError(f"block {block}: permitted is 1 or more")
    visible, missing = 0, rows * columns - num_masked
    before, after = block // 2, block - block // 2
    for centre in torch.randperm(rows * columns, generator=generator).tolist():
        row, column = divmod(centre, columns)
        left, right = max(0, column - before), min(columns, column + after)
        line = ((1 << right - left) - 1) << left
        square = sum(line << r * columns for r in range(max(0, row - before), min(rows, row + after)))
        places = _set_bits(square & ~visible)
        kept = places[:missing] if centre % 2 else places[-missing:]
        visible |= sum(1 << place for place in kept)
        missing -= len(kept)
        if missing == 0:
            break
    return ~_as_mask(visible, rows * columns)


def _uniforms(generator: torch.Generator | None) -> Iterator[float]:
    """Endless numbers in [0, 1), drawn from torch in bulk because a call for each would dominate the time."""
    while True:
        yield from torch.rand(64, generator=generator).tolist()


def _fitting_block(
    grid: tuple[int, int],
    hidden: int,
    missing: int,
    min_area: int,
    max_area: int,
    min_aspect: float,
    draw: Iterator[float],
) -> int:
    """A random block, as bits, that adds 1 to `missing` patches to `hidden`; 0 where ten attempts find none."""
    rows, columns = grid
    for _ in range(ATTEMPTS_PER_BLOCK):
        area = min_area + (max_area - min_area) * next(draw)
        aspect = min_aspect ** (1 - 2 * next(draw))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (0 < height < rows and 0 < width < columns):
            continue
        top, left = int(next(draw) * (rows - height + 1)), int(next(draw) * (columns - width + 1))
        line = ((1 << width) - 1) << left
        block = sum(line << row * columns for row in range(top, top + height))
        if 0 < (block & ~hidden).bit_count() <= missing:
            return block
    return 0


def _edge(grid: tuple[int, int], hidden: int) -> int:
    """Visible patches to grow onto, as bits: in the corners and notches of `hidden`, else beside it, else any."""
    rows, columns = grid
    everything = (1 << rows * columns) - 1
    first_column = sum(1 << row * columns for row in range(rows))
    above, below = hidden << columns & everything, hidden >> columns
    before = (hidden & ~(first_column << columns - 1)) << 1
    after = (hidden & ~first_column) >> 1
    beside_row, beside_column = above | below, before | after
    twice = (beside_row & beside_column) | (above & below) | (before & after)
    for candidates in (twice, beside_row | beside_column, everything):
        if visible := candidates & ~hidden:
            return visible
    raise AssertionError("num_masked is smaller than the grid, so something is visible")


def _set_bits(bits: int) -> list[int]:
    """Places of the bits that are set, ascending."""
    return [place for place in range(bits.bit_length()) if bits >> place & 1]


def _as_mask(bits: int, length: int) -> Tensor:
    """(N,) bool from an integer with a bit per token."""
    octets = torch.frombuffer(bytearray(bits.to_bytes((length + 7) // 8, "little")), dtype=torch.uint8)
    return (octets[:, None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten()[:length].bool()


def _chance_of_none(special: int, total: int, drawn: float) -> float:
    """Chance that `drawn` of `total` things, without replacement, are none of the `special` ones; linear between integers."""
    whole = int(drawn)
    chances = [
        math.prod(max(0, total - n - taken) / (total - taken) for taken in range(special)) for n in (whole, whole + 1)
    ]
    return chances[0] + (drawn - whole) * (chances[1] - chances[0])
