"""One odd picture is left out, and a folder that is gone ends the run."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest
import torch
from PIL import Image

from datamodules.image.keyed_images import KeyedImages
from datamodules.image.sources import FolderSource
from datamodules.image.transforms import evaluation_transform
from datamodules.shared.files import GONE_IN_A_ROW, FolderGoneError

TRANSFORM = evaluation_transform((8, 8), 1.0, [0.0], [1.0], "nearest")


def keyed(folder: Path, count: int, replace: bool) -> KeyedImages:
    for n in range(count):
        place = folder / f"{n % 2}" / f"{n:03d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), n).save(place)
    return KeyedImages(FolderSource(folder), TRANSFORM, 1, (4, 4), replace=replace)


@pytest.mark.parametrize("replace", [True, False])
def test_a_tiny_picture_and_an_odd_error_are_left_out_and_named(
    replace: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = keyed(tmp_path, 6, replace)
    Image.new("L", (1, 1)).save(tmp_path / "0" / "000.png")
    picture = images.source.picture

    def broken(index: int) -> Image.Image:
        if index == 1:
            raise struct.error("unpack requires a buffer of 4 bytes")
        return picture(index)

    monkeypatch.setattr(images.source, "picture", broken)
    samples = [images[index] for index in range(6)]
    said = [entry for sample in samples for entry in sample["unreadable"]]
    assert f"{tmp_path}/0/000.png: it has 1x1 pixels, fewer than the 4x4 patches of the model" in said
    assert f"{tmp_path}/0/002.png: unpack requires a buffer of 4 bytes" in said
    assert ["inputs" in sample for sample in samples] == [replace, replace, True, True, True, True]
    read = [sample for sample in samples if "inputs" in sample]
    assert not {0, 1} & {sample["index"] for sample in read}
    for sample in read:
        assert torch.equal(sample["inputs"], TRANSFORM(picture(sample["index"])))


@pytest.mark.parametrize("replace", [True, False])
def test_a_vanished_folder_is_not_replaced_by_others(replace: bool, tmp_path: Path) -> None:
    images = keyed(tmp_path, 6, replace)
    shutil.rmtree(tmp_path / "1")
    assert "inputs" in images[0]
    with pytest.raises(FolderGoneError, match=f"{tmp_path}/1 cannot be read"):
        images[5]


def test_many_files_in_a_row_that_are_gone_end_the_run(tmp_path: Path) -> None:
    images = keyed(tmp_path, 2 * GONE_IN_A_ROW + 4, replace=False)
    for path in sorted((tmp_path / "0").iterdir())[:GONE_IN_A_ROW]:
        path.unlink()
    for index in range(GONE_IN_A_ROW - 1):
        assert "inputs" not in images[index]
    with pytest.raises(FolderGoneError, match=f"{GONE_IN_A_ROW} files in a row are gone"):
        images[GONE_IN_A_ROW - 1]
