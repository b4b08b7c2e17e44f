"""Pictures come out upright, and whatever is wrong with one is a reason to leave it out."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from pictures import content
from PIL import Image

from d2v_lightning.support.errors import UserError
from datamodules.image.pictures import UNREADABLE, decoded, read_picture, refuse_too_small

ORIENTATION = 0x0112
TO_VIEW = {  # what a viewer does, by the value of the tag
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_photographs_are_upright_however_the_tag_turns_them(kind: str) -> None:
    stored = Image.fromarray(np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40, np.ones((16, 16), np.uint8)))
    lossless = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    for tag, method in TO_VIEW.items():
        exif = Image.Exif()
        exif[ORIENTATION] = tag
        seen = np.asarray(decoded(content(stored, kind, exif=exif, **lossless)).convert("L")).astype(int)
        expected = np.asarray(stored if method is None else stored.transpose(method)).astype(int)
        assert seen.shape == expected.shape
        assert np.abs(seen - expected).max() <= 3, tag


def test_a_tag_that_cannot_be_parsed_turns_nothing() -> None:
    picture = Image.new("RGB", (6, 4), (10, 200, 30))
    assert decoded(content(picture, "PNG", exif=b"Exif\0\0garbage that is no TIFF header")).size == (6, 4)


def test_odd_content_is_unreadable_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    png = content(Image.new("RGB", (40, 40), (1, 2, 3)))
    bomb = bytearray(png)
    bomb[16:24] = struct.pack(">II", 50_000, 50_000)
    for broken in (
        b"",
        png[:30],
        png[:60],
        png[:8] + b"\0" * 40,
        bytes(bomb),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    ):
        with pytest.raises(UNREADABLE):
            decoded(broken)
    with pytest.raises(UserError, match=r"^cannot identify image file$"):
        decoded(b"<html>404</html>")
    with pytest.raises(UserError, match="it has 1x1 pixels, fewer than the 4x4 patches of the model"):
        refuse_too_small(Image.new("L", (1, 1)), (4, 4))
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match="it is no file: folders, pipes and devices are not read"):
        read_picture(str(tmp_path / "pipe.png"))
    for error in (struct.error(), OverflowError(), MemoryError(), SyntaxError(), ZeroDivisionError(), KeyError()):
        assert isinstance(error, UNREADABLE)
