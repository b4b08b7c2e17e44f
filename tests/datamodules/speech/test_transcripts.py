"""Transcripts have one form, and letters and lengths are checked before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from clips import module, write

from datamodules.speech.transcripts import refuse_unknown


def test_letters_that_capitals_make_one_are_said(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", 3.0)
    (tmp_path / "x.trans.txt").write_text("a i\u011fne \u0131\u015f\u0131k\n")
    with pytest.warns(UserWarning, match=r"letters i and \u0131, which data.upper makes one"):
        module(tmp_path, train_split="", task="ctc")


def test_letters_of_the_data(libri: Path) -> None:
    data = module(libri, task="ctc")
    assert data.letters()[0] == "L"
    assert set(data.letters()) == set("HELOWR")
    assert json.dumps(data.letters())
    with pytest.raises(ValueError, match=r"12 transcripts of the train split have letters that it lacks: L R "):
        refuse_unknown(data._sources["train"], "train", {"H", "E", "O", "W", "D"}, "it", "help it")


def test_letters_of_the_data_are_checked_in_all_splits_before_anything_is_trained(libri: Path) -> None:
    (libri / "dev" / "2" / "9" / "2-9.trans.txt").write_text("2-9-0000 HEX\n2-9-0001 HE\n2-9-0002 LO\n")
    data = module(libri, val_split="dev", task="ctc")
    with pytest.raises(
        ValueError, match=r"1 transcripts of the val split have letters that the training split lacks: X"
    ):
        data.letters()


def test_white_space_and_unicode_forms_make_no_letters(libri: Path) -> None:
    lines = "1-9-0000 E\u0301COLE\tA\u00a0B\n" + "".join(f"1-9-{n:04d} \u00c9\n" for n in range(1, 12))
    (libri / "train" / "1" / "9" / "1-9.trans.txt").write_text(lines)
    data = module(libri, task="ctc")
    assert data._sources["train"].clips[0].text == "\u00c9COLE A B"
    assert set(data.letters()) == set("\u00c9COLEAB")


def test_transcripts_longer_than_their_clips_are_counted_and_named_at_the_start(libri: Path) -> None:
    path = libri / "train" / "1" / "9" / "1-9.trans.txt"
    path.write_text(path.read_text().replace("1-9-0003 HELLO WO", "1-9-0003 " + "OO " * 60))
    with pytest.warns(UserWarning, match=r"1 of 12 transcripts of the train split have more letters .*1-9-0003\.flac"):
        module(libri, task="ctc")
