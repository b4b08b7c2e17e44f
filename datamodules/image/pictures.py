"""Files of pictures to pixels: what can be decoded, which way up it is, and what counts as unreadable."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib

from PIL import Image, ImageOps, UnidentifiedImageError

from d2v_lightning.support.errors import UserError
from datamodules.shared.files import read_bytes

FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM", "DDS", "DIB", "ICNS", "ICO", "PCX", "PSD", "QOI"),
    *("SGI", "SUN", "TGA", "XBM", "XPM", "AVIF"),
)
"""Of the endings in `PICTURES`. Pillow would run Ghostscript on others."""
UNREADABLE = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, ArithmeticError, LookupError, AssertionError),
    *(
        RuntimeError,
        MemoryError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ),
)
"""What Pillow raises on files that are no pictures, are broken, or are too large to decode."""


def read_picture(path: str) -> Image.Image:
    """The picture in a file, see `decoded`; any of `UNREADABLE` where the file cannot be read or is none."""
    return decoded(read_bytes(path))


def decoded(content: bytes) -> Image.Image:
    """The picture in the bytes of a file, decoded to its end and turned upright as its EXIF tag says.

    Of an animation, the first frame. Any of `UNREADABLE` means that it cannot be read.
    """
    try:
        opened = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError as error:  # whose message has an address in memory
        raise UserError("cannot identify image file") from error
    with opened as picture:
        picture.load()
        with contextlib.suppress(*UNREADABLE):  # a tag that cannot be parsed turns nothing
            ImageOps.exif_transpose(picture, in_place=True)
        return picture


def refuse_too_small(picture: Image.Image, grid: tuple[int, int]) -> None:
    """Raises ValueError where there are more patches, `grid` (rows, columns), than pixels along a side."""
    width, height = picture.size
    if height < grid[0] or width < grid[1]:
        raise UserError(f"it has {height}x{width} pixels, fewer than the {grid[0]}x{grid[1]} patches of the model")
