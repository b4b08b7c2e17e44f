"""Manifests: fairseq's, JSON lines and transcripts beside them; a bad line is left out and named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from clips import module, write

from datamodules.speech.sources import open_split
from datamodules.speech.waveform import (
    read_waveform,
)


@pytest.mark.parametrize("letters", [True, False])
def test_fairseq_manifests(libri: Path, letters: bool) -> None:
    clips = open_split(str(libri), "dev").clips
    rows = [f"{Path(clip.name).relative_to(libri)}\t{clip.samples}" for clip in clips]
    (libri / "valid.tsv").write_text("\n".join([str(libri), *rows]) + "\n")
    if letters:
        (libri / "valid.ltr").write_text("H E L L O |\nH I | Y O U |\nA |\n")
    else:
        (libri / "valid.wrd").write_text("HELLO\nHI YOU\nA\n")
    source = open_split(str(libri), "valid")
    assert [clip.text for clip in source.clips] == ["HELLO", "HI YOU", "A"]
    (libri / "valid.ltr").write_text("A |\n")
    with pytest.raises(ValueError, match="lists 3 clips, the transcripts beside it are 1"):
        open_split(str(libri), "valid")
    (libri / "valid.tsv").write_text(f"{libri}\nclip.flac 12\n")
    with pytest.raises(ValueError, match=r"valid.tsv:2 is not '<path><TAB><samples>'"):
        open_split(str(libri), "valid")


def test_json_lines(libri: Path) -> None:
    write(libri / "a.wav", 1.0)
    (libri / "some.jsonl").write_text('{"audio": "a.wav", "text": "hi"}\n{"audio": "a.wav"}\n')
    source = open_split(str(libri), "some")
    assert [(clip.samples, clip.text) for clip in source.clips] == [(16000, "hi"), (16000, None)]
    for bad in ('{"sound": "a.wav"}', '{"audio": "a.wav", "text": 7}', '["a.wav"]', '{"audio": {}}', "a.wav"):
        (libri / "some.jsonl").write_text('{"audio": "a.wav"}\n' + bad + "\n")
        with pytest.warns(UserWarning, match=r"1 line\(s\) of .* left out: .*some.jsonl:2 is not a line like"):
            assert len(open_split(str(libri), "some")) == 1
    (libri / "some.jsonl").write_text('{"audio_filepath": "a.wav", "offset": 0, "duration": 1.0}\n')
    assert len(open_split(str(libri), "some")) == 1
    for piece in ('"offset": 0.5', '"offset": 0, "duration": 0.5'):
        (libri / "some.jsonl").write_text(f'{{"audio_filepath": "a.wav", {piece}}}\n')
        with pytest.raises(ValueError, match=r"some.jsonl:1 is a piece of .*a.wav \(offset 0"):
            open_split(str(libri), "some")
    (libri / "some.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"some.jsonl is empty"):
        open_split(str(libri), "some")


@pytest.mark.filterwarnings("ignore:.* left out")
def test_names_and_transcripts_are_matched_whatever_bytes_they_are_written_in(tmp_path: Path) -> None:
    composed, decomposed, latin = "caf\u00e9", "cafe\u0301", os.fsdecode(b"caf\xe8")
    for folder, stem in (("a", composed), ("b", decomposed), ("c", latin)):
        write(tmp_path / folder / "plain.wav", 1.0).rename(tmp_path / folder / f"{stem}.wav")
        line = f"{stem} W\u00d6RTER".encode(errors="surrogateescape")
        other = (decomposed if stem == composed else composed).encode() + b" W\xc3\x96RTER"
        (tmp_path / folder / "t.trans.txt").write_bytes((line if stem == latin else other) + b"\n")
        assert [clip.text for clip in open_split(str(tmp_path), folder).clips] == ["W\u00d6RTER"]
        assert len(open_split(str(tmp_path), folder).read(0)) == 16000
    names = [f"a/{decomposed}.wav", f"b/{composed}.wav", f"c/{latin}.wav"]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps({"audio": name, "text": "\u00e9"}) + "\n" for name in names))
    (tmp_path / "raw.tsv").write_bytes(
        f"{tmp_path}\r\n\r\n".encode()
        + b"".join(name.encode(errors="surrogateescape") + b"\t16000\r\n" for name in names)
    )
    for manifest in ("all", "raw"):
        assert [clip.samples for clip in open_split(str(tmp_path), manifest).clips] == [16000] * 3


def test_one_bad_line_of_a_manifest_is_left_out_and_named(tmp_path: Path) -> None:
    for name in "abcd":
        write(tmp_path / f"{name}.wav", 1.0)
    lines = [
        b'{"audio": "a.wav", "text": "a\xe2\x80\xa8b"}', b'{"audio": "b.wav", "text": "\\ud83d"}', b"", b'{"audio": "a.wav',
        b'{"audio": "gone.wav"}', b'{"audio": "a.wav", "text": "a\xe2\x80\xa8b"}', b'{"audio": "b.wav", "text": "caf\xe9"}',
        f'{{"audio": "{tmp_path}/c.wav", "text": null}}'.encode(),
        b'{"audio_filepath": "b.wav", "offset": 0.5, "duration": 0.2}', b'{"audio": "' + b"x" * 300 + b'.wav"}',
        b'{"audio": "a\\u0000.wav"}', b"[" * 100_000, b'{"audio": "d.wav", "text": "last"}',
    ]  # fmt: skip
    (tmp_path / "m.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines))
    with pytest.warns(UserWarning, match="left out") as said:
        clips = open_split(str(tmp_path), "m").clips
    assert [(Path(clip.name).name, clip.text) for clip in clips] == [
        ("a.wav", "a\u2028b"),
        ("c.wav", None),
        ("d.wav", "last"),
    ]
    files, of_lines = (str(warning.message) for warning in said)
    assert files.startswith(
        f"3 file(s) of {tmp_path}/m.jsonl left out, unreadable: {tmp_path}/gone.wav: there is no such"
    )
    assert of_lines.startswith(f"6 line(s) of {tmp_path}/m.jsonl left out: ")
    assert [f"m.jsonl:{number} is" in of_lines for number in range(1, 14)] == [
        number in (2, 4, 6, 7, 9, 12) for number in range(1, 14)
    ]
    rows = ["", "a.wav\t16000", "b.wav 16000", "b.wav\tmany", "\t5", "d.wav\t16000", "b.wav\t16000"]
    (tmp_path / "t.tsv").write_text("\n".join([str(tmp_path), *rows]) + "\n\n")
    (tmp_path / "t.wrd").write_bytes(b"one\ntwo\nthree\nfour\ncaf\xe9\nsix \xc3\xa9\n\n")
    with pytest.warns(UserWarning, match=r"4 line\(s\) .*t.wrd:5: not UTF-8 at byte 3; .*t.tsv:4 .*t.tsv:5 .*t.tsv:6 "):
        clips = open_split(str(tmp_path), "t").clips
    assert [(Path(clip.name).name, clip.text) for clip in clips] == [("a.wav", "one"), ("b.wav", "six \u00e9")]
    (tmp_path / "t.tsv").write_text("a.wav\t16000\nb.wav\t16000\n")
    with pytest.raises(ValueError, match=r"t.tsv:1 is a row: the first line of a manifest is the folder"):
        open_split(str(tmp_path), "t")
    (tmp_path / "x.trans.txt").write_text("a ONE\na TWO\nb FINE\nb FINE\n")
    with pytest.warns(UserWarning, match=r"1 line\(s\) .*x.trans.txt:2: another transcript of a"):
        texts = [clip.text for clip in open_split(str(tmp_path), "").clips]
    assert texts == [None, "FINE", None, None]
    with pytest.warns(UserWarning, match=r"3 of 4 clips of the train split left out, without a transcript: .*a\.wav"):
        assert len(module(tmp_path, train_split="", task="ctc")._sources["train"]) == 1


def test_a_manifest_is_read_from_where_it_lies(libri: Path) -> None:
    clip = open_split(str(libri), "dev").clips[0]
    (libri / "near.tsv").write_text(f".\n{Path(clip.file).relative_to(libri)}\t{clip.samples}\n")
    assert np.array_equal(open_split(str(libri), "near").read(0), read_waveform(clip.file))
