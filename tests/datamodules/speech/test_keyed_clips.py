"""A clip that cannot be read is replaced and named; a folder that is gone ends the run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from clips import write

from datamodules.shared.files import FolderGoneError
from datamodules.speech.keyed_clips import KeyedClips
from datamodules.speech.sources import open_split


def test_clips_that_are_broken_after_all_are_replaced_and_named(libri: Path) -> None:
    source = open_split(str(libri), "train")
    Path(source.clips[4].file).write_bytes(b"gone")
    sample = KeyedClips(source)[(0, 4)]
    assert sample["index"] == 3, "the next shorter one"
    assert sample["unreadable"][0].startswith(source.clips[4].name)


@pytest.mark.parametrize("replace", [True, False])
def test_a_vanished_folder_of_recordings_is_not_replaced_by_others(libri: Path, replace: bool) -> None:
    clips = KeyedClips(open_split(str(libri), ""), replace=replace)
    shutil.rmtree(libri / "dev")
    dev = [index for index, clip in enumerate(clips.source.clips) if "/dev/" in clip.name]
    assert [index for index in range(len(clips)) if index not in dev and "inputs" not in clips[index]] == []
    for index in dev:
        with pytest.raises(
            FolderGoneError, match=r"/dev/2/9 cannot be read .* though it held data when the run started"
        ):
            clips[index]


def test_many_recordings_in_a_row_that_are_gone_end_the_run(libri: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.shared.files.GONE_IN_A_ROW", 3)
    clips = KeyedClips(open_split(str(libri), "train"), replace=False)
    for index in (0, 1, 3, 4, 5):
        Path(clips.source.clips[index].file).unlink()
    assert ["inputs" in clips[index] for index in range(5)] == [False, False, True, False, False]
    with pytest.raises(
        FolderGoneError, match=r"3 files in a row are gone, the last is .*1-9-0005\.flac: there is no such"
    ):
        clips[5]


def test_a_truncated_recording_is_replaced_and_named_and_one_longer_than_its_header_is_cut(libri: Path) -> None:
    source = open_split(str(libri), "train")
    whole = write(libri / "long.flac", 4.0).read_bytes()
    Path(source.clips[4].file).write_bytes(whole[:22] + (128_000).to_bytes(4, "big") + whole[26:])  # promises 8 s
    promised = source.clips[5].samples
    source.clips[5] = source.clips[5]._replace(samples=promised - 100)
    sample = KeyedClips(source)[(0, 4)]
    assert sample["index"] != 4
    assert sample["unreadable"][0].startswith(f"{source.clips[4].name}: truncated, ")
    assert len(KeyedClips(source)[(0, 5)]["inputs"]) == promised - 100
