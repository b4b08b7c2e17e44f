"""Long recordings: windows give the frames of the whole, in memory that does not grow."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from d2v_lightning import AudioEncoder
from d2v_lightning.nn.encoders.audio import feature_lengths
from datamodules.shared.files import FolderGoneError
from datamodules.speech.waveform import normalise, read_waveform
from datamodules.speech.windows import SpeechWindows, _starts, _statistics

CONVS = [(8, 10, 5), (8, 4, 4), (8, 4, 4), (8, 4, 4)]


def recording(folder: Path, seconds: float, rate: int = 16000, channels: int = 1) -> str:
    times = np.arange(int(seconds * rate)) / rate
    wave = 0.3 * np.sin(2 * np.pi * (200 + 40 * times) * times) + 0.1 * np.sin(9 * times)
    path = folder / f"{seconds}_{rate}_{channels}.wav"
    soundfile.write(path, np.stack([wave] * channels, axis=1), rate, subtype="FLOAT")
    return str(path)


def stitched(path: str, **options: int) -> torch.Tensor:
    torch.manual_seed(0)
    encoder = AudioEncoder(16, CONVS, position_groups=4).eval()
    pieces = []
    with torch.no_grad():
        for batch in SpeechWindows([path], conv_layers=CONVS, **options):
            tokens, _ = encoder.features(batch["inputs"], batch.get("padding_mask"))
            pieces += [row[first:end] for row, (first, end) in zip(tokens, batch["keep"].tolist(), strict=True)]
    assert batch["last"].tolist()[-1]
    return torch.cat(pieces)


@pytest.mark.parametrize("seconds", [0.2, 3.0, 7.3, 9.01, 9.02, 12.0])
def test_frames_are_those_of_the_whole_wherever_windows_fall(seconds: float, tmp_path: Path) -> None:
    """The feature encoder sees 25 ms: a context of a second is all that it needs, and the frames must be equal."""
    path = recording(tmp_path, seconds)
    torch.manual_seed(0)
    encoder = AudioEncoder(16, CONVS, position_groups=4).eval()
    with torch.no_grad():
        whole = encoder.features(torch.from_numpy(normalise(read_waveform(path)))[None])[0][0]
    assert len(whole) == feature_lengths(round(seconds * 16000), CONVS)
    for options in ({"core_seconds": 3, "context_seconds": 1}, {"core_seconds": 2, "context_seconds": 2, "windows": 3}):
        frames = stitched(path, **options)
        assert frames.shape == whole.shape
        torch.testing.assert_close(frames, whole, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_other_rates_and_channels(rate: int, tmp_path: Path) -> None:
    path = recording(tmp_path, 6.5, rate, channels=2)
    one = stitched(path, core_seconds=20)
    several = stitched(path, core_seconds=2, context_seconds=1)
    assert one.shape == several.shape
    torch.testing.assert_close(one, several, atol=2e-3, rtol=1e-2)


def test_no_batch_is_longer_than_its_windows(tmp_path: Path) -> None:
    path = recording(tmp_path, 60.0)
    batches = list(SpeechWindows([path, path], conv_layers=CONVS, core_seconds=4, context_seconds=1, windows=2))
    assert max(batch["inputs"].numel() for batch in batches) <= 2 * 6 * 16000
    assert [int(batch["index"][-1]) for batch in batches if batch["last"][-1]] == [0, 1]
    kept = sum(int((batch["keep"][:, 1] - batch["keep"][:, 0]).sum()) for batch in batches)
    assert kept == 2 * feature_lengths(60 * 16000, CONVS)


def test_what_cannot_be_read_is_left_out_and_named(tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    empty = tmp_path / "empty.wav"
    soundfile.write(empty, np.zeros(0), 16000)
    good = recording(tmp_path, 1.0)
    soundfile.write(tmp_path / "short.wav", np.zeros(20), 16000)
    names = ["bad.wav", "empty.wav", "short.wav", Path(good).name]
    batch, left_out = list(SpeechWindows([str(tmp_path / name) for name in names], conv_layers=CONVS))
    assert batch["index"].tolist() == [3]
    assert [Path(entry.partition(":")[0]).name for entry in left_out["unreadable"]] == ["bad.wav", *names[1:3]]


def test_channels_that_cancel_for_a_while_do_not_break_a_recording_off(tmp_path: Path) -> None:
    path = recording(tmp_path, 30.0, channels=2)
    wave, rate = soundfile.read(path)
    wave[10 * rate : 20 * rate, 1] *= -1
    soundfile.write(path, wave, rate, subtype="FLOAT")
    batches = list(SpeechWindows([path], conv_layers=CONVS, core_seconds=4, context_seconds=1, windows=1))
    assert [batch.get("unreadable") for batch in batches] == [None] * len(batches)
    assert [bool(batch["last"][-1]) for batch in batches] == [False] * (len(batches) - 1) + [True]


def test_a_vanished_folder_ends_the_prediction(tmp_path: Path) -> None:
    paths = [recording(tmp_path, seconds) for seconds in (1.0, 1.1)]
    (tmp_path / "b").mkdir()
    gone = [
        shutil.copy(paths[0], tmp_path / "b/gone.wav"),
        shutil.copy(recording(tmp_path, 6.0), tmp_path / "b/long.wav"),
    ]
    shutil.rmtree(tmp_path / "b")
    with pytest.raises(FolderGoneError, match="/b cannot be read"):
        list(SpeechWindows([*paths, *gone], conv_layers=CONVS))
    Path(paths[1]).unlink()
    _, left_out = SpeechWindows(paths, conv_layers=CONVS)
    assert left_out == {"unreadable": [f"{paths[1]}: there is no such file"]}


def test_short_recordings_share_a_batch_with_those_of_like_length(tmp_path: Path) -> None:
    """And which these are follows from the list alone, whatever is done and however many processes read."""
    paths = [recording(tmp_path, seconds) for seconds in (1.0, 3.0, 1.1, 2.9, 9.0, 1.2)]
    windows = SpeechWindows(paths, conv_layers=CONVS, core_seconds=4, context_seconds=1, windows=1)
    groups = [batch["index"].tolist() for batch in windows]
    assert groups[:2] == [[0, 2, 5], [3, 1]]
    short = next(iter(windows))
    for clip, index in zip(short["inputs"], (0, 2, 5), strict=True):
        alone = normalise(read_waveform(paths[index]))
        assert np.array_equal(clip[: len(alone)], alone)
    assert short["padding_mask"].sum(dim=1).tolist() == [3200, 1600, 0]
    windows.done[[0, 1, 3]] = True
    assert [batch["index"].tolist() for batch in windows][:1] == [[2, 5]]


def test_windows_end_in_pauses_wherever_the_recording_begins(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    wave = 0.3 * random.standard_normal(60 * 16000)
    pauses = np.cumsum(random.integers(6, 12, 16)) / 5 * 2  # in seconds, on fifths
    for pause in pauses:
        wave[int((pause - 0.1) * 16000) : int((pause + 0.1) * 16000)] *= 0.01 * (1 + random.random())
    ends = []
    for number, cut in enumerate((0.0, 1.4, 5.0)):
        soundfile.write(path := tmp_path / f"{number}.wav", wave[int(cut * 16000) :], 16000, subtype="FLOAT")
        starts = _starts(_statistics(str(path))[-1], 8 * 5)
        assert all(2 <= (after - start) / 5 <= 8 for start, after in itertools.pairwise(starts))
        ends.append([round(start / 5 + cut, 1) for start in starts])
    assert set(ends[0][1:]) <= {round(pause, 1) for pause in pauses}
    for later in ends[1:]:
        assert later[-5:] == ends[0][-5:], "once two of them agree, all that follow do"


def test_windows_need_context() -> None:
    with pytest.raises(ValueError, match="context_seconds 0"):
        SpeechWindows([], context_seconds=0)
