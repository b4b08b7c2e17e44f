"""Long recordings to clips: where they are cut, that samples are kept, and that a stopped run goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from d2v_lightning.commands import cut_speech
from d2v_lightning.commands.cut_speech import Stretch, joined, main
from datamodules.speech.sources import open_split

RATE = 16000


def recording(path: Path, activity: object, seconds: float = 10.0, rate: int = RATE) -> np.ndarray:
    """Noise of 16 bits, and Libri-light's JSON beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = np.random.default_rng(len(path.name)).integers(-9000, 9000, int(seconds * rate)).astype(np.int16)
    soundfile.write(path, wave, rate, subtype="PCM_16")
    meta = {"speaker": "960", "book_meta": {"id": "319"}, "snr": 5.391, "voice_activity": activity}
    path.with_suffix(".json").write_text(json.dumps(meta))
    return wave


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Two books of Libri-light's layout."""
    recording(tmp_path / "raw/small/960/history_01/a.flac", [[0.5, 2.5], [3.0, 4.0], [4.5, 7.0], [7.25, 8.0]])
    recording(tmp_path / "raw/small/17/poems_02/bb.flac", [[1.0, 9.0]])
    return tmp_path / "raw"


def clips(out: Path) -> list[str]:
    return sorted(str(path.relative_to(out)) for path in out.rglob("*.flac"))


def test_clips_hold_the_speech_and_keep_tree_and_samples(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main([str(raw), "--out", str(out), "--seconds", "3", "--workers", "2"]) == 0
    book = "small/960/history_01/a/a_000"
    assert clips(out) == ["small/17/poems_02/bb/bb_0000.flac", f"{book}0.flac", f"{book}1.flac", f"{book}2.flac"]
    wave, rate = soundfile.read(raw / "small/960/history_01/a.flac", dtype="int16")
    cuts = [[(0.5, 2.5), (3.0, 4.0)], [(4.5, 7.0)], [(7.25, 8.0)]]
    for number, parts in enumerate(cuts):
        expected = np.concatenate([wave[int(begin * rate) : int(end * rate)] for begin, end in parts])
        clip, clip_rate = soundfile.read(out / f"{book}{number}.flac", dtype="int16")
        assert clip_rate == RATE
        np.testing.assert_array_equal(clip, expected)
    source = open_split(str(out), "")  # as data.root
    assert sorted(clip.samples for clip in source.clips) == [12000, 40000, 48000, 128000]
    assert (out / "left_out.txt").read_text() == ""


def test_stretches_are_joined_up_to_the_length_and_a_longer_one_is_a_clip() -> None:
    stretches = [
        Stretch(RATE * begin, RATE * end) for begin, end in ((0, 20), (21, 61), (62, 63), (70, 170), (171, 172))
    ]
    lengths = [[(end - begin) // RATE for begin, end in clip] for clip in joined(stretches, 60.0)]
    assert lengths == [[20, 40], [1], [100], [1]]
    assert list(joined([], 60.0)) == []


def test_a_stopped_run_goes_on(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, original = tmp_path / "out", cut_speech._flac
    command = [str(raw), "--out", str(out), "--seconds", "3", "--workers", "1"]

    def full(waveform: np.ndarray) -> bytes:
        if len(waveform) < RATE:  # the last clip of a
            raise OSError(28, os.strerror(28), str(out / "small/960/history_01/.a.unfinished/a_0002.flac"))
        return original(waveform)

    monkeypatch.setattr(cut_speech, "_flac", full)
    assert main(command) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert "a/a_0002.flac: No space left on device: free some space" in printed
    assert clips(out) == ["small/17/poems_02/bb/bb_0000.flac"], "a recording is cut as a whole or not at all"
    assert not list(out.rglob(".*")), "nothing unfinished, and no lock"
    monkeypatch.setattr(cut_speech, "_flac", original)
    before = (out / "small/17/poems_02/bb/bb_0000.flac").stat().st_mtime_ns
    assert main(command) == 0
    assert "1 recordings cut into 3 clips, 0.0 hours, 1 had been cut before" in capsys.readouterr().out
    assert len(clips(out)) == 4
    assert (out / "small/17/poems_02/bb/bb_0000.flac").stat().st_mtime_ns == before
    assert main([*command, "--seconds", "5"]) == 1
    assert "was begun with {'seconds': 3.0}, not {'seconds': 5.0}: give the same" in capsys.readouterr().err


def test_what_cannot_be_cut_is_counted_and_named(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = raw / "small/17/poems_02"
    (folder / "no_json.flac").write_bytes((folder / "bb.flac").read_bytes())
    recording(folder / "odd.flac", [[1.0]])
    recording(folder / "backwards.flac", [[4.0, 2.0]])
    recording(folder / "cut_off.flac", [[0.0, 100.0]])
    recording(folder / "broken.flac", [[0.0, 1.0]])
    (folder / "broken.flac").write_bytes(b"fLaC")
    recording(folder / "bb.wav", [[1.0, 9.0]])
    recording(folder / "silent.flac", [])
    recording(folder / "above.flac", [[0.0, 1.0]])
    recording(folder / "above" / "below.flac", [[0.0, 1.0]])
    (folder / "nan.flac").write_bytes((folder / "bb.flac").read_bytes())
    (folder / "nan.json").write_text('{"voice_activity": [[NaN, 1]]}')
    (folder / "gone.json").write_text("{}")
    out = tmp_path / "out"
    assert main([str(raw), "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "3 recordings cut into 3 clips" in printed.out
    assert "10 file(s) left out" in printed.err
    reasons = dict(line.split(": ", 1) for line in (out / "left_out.txt").read_text().splitlines())
    reasons = {Path(path).name: reason for path, reason in reasons.items()}
    assert reasons.pop("broken.flac")
    assert reasons == {
        "no_json.flac": "there is no no_json.json beside it, which says where there is speech",
        "odd.flac": 'odd.json has no list of speech like {"voice_activity": [[0.4, 12.3], ...]}, in seconds',
        "nan.flac": 'nan.json has no list of speech like {"voice_activity": [[0.4, 12.3], ...]}, in seconds',
        "backwards.flac": "backwards.json has a stretch of voice_activity that begins before 0 or ends before it begins",
        "cut_off.flac": "10.0 of 100.0 s of speech are there: it is truncated, or the JSON file is another's",
        "gone.json": "there is no recording beside it",
        "silent.flac": "its JSON file lists no speech",
        "above.flac": "a folder with recordings has the same name",
        "bb.wav": f"{folder / 'bb.flac'} has the same name",
    }


def test_another_rate_becomes_16_khz(tmp_path: Path) -> None:
    recording(tmp_path / "raw/1/b/x.flac", [[1.0, 3.0]], 4.0, 22050)
    assert main([str(tmp_path / "raw"), "--out", str(tmp_path / "out")]) == 0
    assert soundfile.info(tmp_path / "out/1/b/x/x_0000.flac").frames == 2 * RATE


def test_mistakes_are_one_line(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "mute").mkdir()
    (tmp_path / "mute" / "x.wav").write_bytes(b"RIFF")
    out = str(tmp_path / "out")
    for arguments, message in (
        ([str(tmp_path / "gone"), "--out", out], "gone is no folder: give one that holds recordings"),
        ([str(tmp_path / "empty"), "--out", out], "empty holds no recording: give a folder with files in one of"),
        ([str(raw), "--out", str(raw / "out")], "whose recordings are cut: write to another folder"),
        ([str(raw), "--out", out, "--seconds", "0"], "seconds 0.0, workers"),
        ([str(tmp_path / "mute"), "--out", out], "none of 1 recordings could be cut, the first of 1 reasons is"),
    ):
        assert main(arguments) == 1
        printed = capsys.readouterr().err
        assert printed.startswith("error: ")
        assert message in printed
        assert printed.count("\n") == 1
