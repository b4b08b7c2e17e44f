"""Pictures come out upright, and whatever is wrong with one is a reason to leave it out."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from d2v_lightning.support.errors import UserError
from datamodules.image.pictures import UNREADABLE, decoded, read_picture, refuse_too_small
from datamodules.image.sources import PictureFiles, open_cell
from datamodules.image.transforms import evaluation_transform
from datamodules.shared.files import FolderGoneError

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


def content(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


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


def test_cells_without_a_picture_have_a_reason() -> None:
    good = Image.new("L", (3, 2), 7)
    assert open_cell({"bytes": content(good), "path": None}).getpixel((0, 0)) == 7
    with pytest.raises(FileNotFoundError) as error:
        open_cell({"bytes": None, "path": "/never/there.png"})
    assert not isinstance(error.value, FolderGoneError)
    for cell in (None, {"bytes": None, "path": None}, {"bytes": b"", "path": ""}, {"path": None}):
        with pytest.raises(UserError, match="there is no picture in this row"):
            open_cell(cell)
    with pytest.raises(UserError, match="this row holds int instead of a picture"):
        open_cell(7)


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


def test_a_missing_file_is_unreadable_and_a_missing_folder_ends_the_run(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("L", (3, 2)).save(tmp_path / name)
    source = PictureFiles([str(tmp_path / "a.png"), str(tmp_path / "b.png")])
    (tmp_path / "a.png").unlink()
    with pytest.raises(FileNotFoundError) as error:
        source.picture(0)
    assert not isinstance(error.value, FolderGoneError)
    (tmp_path / "b.png").unlink()
    with pytest.raises(FolderGoneError, match="is empty, though it held data when the run started"):
        source.picture(1)
    tmp_path.rmdir()
    with pytest.raises(FolderGoneError, match=r"cannot be read \(No such file or directory\)"):
        source.picture(1)


def test_a_strip_is_shown_by_its_middle_without_scaling_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.transforms.v2 import functional

    def noted(picture: Any, size: list[int], *arguments: Any, **named: Any) -> Any:
        sizes.append(size)
        return resize(picture, size, *arguments, **named)

    sizes: list[list[int]] = []
    resize = functional.resize
    monkeypatch.setattr(functional, "resize", noted)
    transform = evaluation_transform((32, 32), 1.0, [0.0], [1.0], "bilinear")
    for shape in ((2, 60_000), (60_000, 2)):
        values = np.zeros(shape, np.uint8)
        values[tuple(slice(side // 2 - min(4, side // 2), side // 2 + 4) for side in shape)] = 255
        shown = transform(Image.fromarray(values))
        assert shown.shape == (1, 32, 32)
        assert shown.min() == 1
        assert max(sizes[-1]) <= 32 * 17
    plain = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 90), dtype=np.uint8))
    assert transform(plain).shape == (1, 32, 32)
    assert sizes[-1] == [32, 72]
