"""Sound of every format, rate and number of channels is read whole or in part, or refused with its reason."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from d2v_lightning.support.errors import UserError
from datamodules.speech.waveform import (
    UNREADABLE,
    Recording,
    measure,
    normalise,
    read_waveform,
    samples_at_16k,
    stream_waveform,
)


@pytest.mark.parametrize(
    ("rate", "channels", "suffix"), [(8000, 1, "wav"), (44100, 2, "flac"), (22050, 1, "ogg"), (48000, 1, "mp3")]
)
def test_rates_channels_and_formats(rate: int, channels: int, suffix: str, tmp_path: Path) -> None:
    times = np.arange(rate) / rate
    wave = np.stack([0.5 * np.sin(2 * np.pi * 440 * times)] * channels, axis=1)
    soundfile.write(tmp_path / f"a.{suffix}", wave, rate)
    read = read_waveform(str(tmp_path / f"a.{suffix}"))
    assert len(read) == pytest.approx(samples_at_16k(rate, rate), abs=2000 if suffix == "mp3" else 0)
    peak = np.abs(np.fft.rfft(read[2000:14000])).argmax() * 16000 / 12000
    assert peak == pytest.approx(440, abs=2)
    assert normalise(read).std() == pytest.approx(1.0, abs=1e-3)
    assert not normalise(np.zeros(100, np.float32)).any(), "silence stays silence"


FORMATS = [
    ("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "GSM610"), ("WAVEX", "PCM_24"), ("RF64", "PCM_16"), ("W64", "PCM_16"),
    ("AIFF", "PCM_16"), ("AU", "ULAW"), ("CAF", "PCM_16"), ("NIST", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"),
    ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"),
]  # fmt: skip


def content(kind: str, subtype: str, samples: Any, rate: int = 16000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


@pytest.mark.parametrize(("kind", "subtype"), FORMATS)
def test_sound_that_is_cut_off_is_refused_and_a_part_of_a_whole_one_is_that_part(kind: str, subtype: str) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(160_000)
    sound = content(kind, subtype, noise)
    whole = read_waveform(sound)
    assert (len(whole), measure(sound)[0]) == (160_000, 160_000)
    np.testing.assert_array_equal(np.concatenate(list(stream_waveform(sound))), whole)
    with Recording(sound) as recording:
        for begin, end in ((0, 400), (70_001, 90_000), (20_000, 100_000), (159_000, 170_000)):
            np.testing.assert_array_equal(recording.part(begin, end), whole[begin:end])
    for reader in (read_waveform, lambda file: list(stream_waveform(file))):
        with pytest.raises(UNREADABLE):
            reader(sound[: int(0.6 * len(sound))])
    if kind not in ("FLAC", "MP3"):  # whose headers are right, and known to be wrong when the end is read
        with pytest.raises(ValueError, match=r"truncated|malformed"):
            measure(sound[: int(0.6 * len(sound))])
    if subtype != "OPUS":
        other = content(kind, subtype, noise, 22050)
        np.testing.assert_allclose(
            read_waveform(other, 40_000, 60_000), read_waveform(other)[40_000:60_000], rtol=0, atol=2e-6
        )


@pytest.mark.parametrize("rate", [16000, 44100])
def test_a_tag_behind_the_last_frame_of_a_flac_is_not_read(rate: int) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, rate)
    whole = content("FLAC", "PCM_16", noise, rate)
    tagged = whole + b"TAG" + b"Title".ljust(125, b"\0")
    assert (read_waveform(tagged) == read_waveform(whole)).all()
    assert (read_waveform(tagged, 12000, 16000) == read_waveform(whole, 12000, 16000)).all()
    assert (np.concatenate(list(stream_waveform(tagged))) == np.concatenate(list(stream_waveform(whole)))).all()


def test_lengths_that_a_pipe_leaves_open_are_found_and_impossible_headers_are_named() -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(48_000)
    wav, flac, aiff = (content(kind, "PCM_16", noise) for kind in ("WAV", "FLAC", "AIFF"))
    data, ssnd = wav.index(b"data") + 4, aiff.index(b"SSND") + 4
    endless = [
        wav[:4] + size + wav[8:data] + size + wav[data + 4 :]
        for size in (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x00\xf0\xff\x7f")
    ]
    endless += [wav[:data] + b"\0\0\0\0" + wav[data + 4 :], flac[:21] + b"\xf0\0\0\0\0" + flac[26:]]
    endless += [aiff[:4] + b"\xff" * 4 + aiff[8:ssnd] + b"\xff" * 4 + aiff[ssnd + 4 :]]
    for sound in endless:
        assert measure(sound) == (48_000, 16_000)
        whole = read_waveform(sound)
        np.testing.assert_allclose(whole, read_waveform(wav), rtol=0, atol=1e-4)  # formats round differently
        np.testing.assert_array_equal(read_waveform(sound, 20_000, 30_000), whole[20_000:30_000])
    opposite = np.stack([noise, -noise], axis=1)
    for sound, message in (
        (flac[:21] + b"\xff" * 5 + flac[26:], r"promises 68719476735 samples, more than \d+ bytes can hold"),
        (wav[:24] + (1).to_bytes(4, "little") + wav[28:], "sample rate is 1 Hz"),
        (wav[:24] + (2**31 - 1).to_bytes(4, "little") + wav[28:], "sample rate is 2147483647 Hz"),
        (wav[:22] + b"\0\0" + wav[24:], "Channel count is zero"),
        (content("WAV", "PCM_16", np.zeros(0)), "no samples"),
        (b"", r"[Ff]ormat not recogni"),
    ):
        with pytest.raises(ValueError, match=message):
            measure(sound)
    for sound, message in (
        (content("WAV", "FLOAT", np.append(noise, np.nan)), "not finite"),
        (content("WAV", "FLOAT", np.append(noise, -np.inf)), "not finite"),
        (content("WAV", "PCM_16", opposite), "its 2 channels cancel each other"),
    ):
        for reader in (read_waveform, lambda file: read_waveform(file, 40_000, 48_001)):
            with pytest.raises(ValueError, match=message):
                reader(sound)
    assert not read_waveform(content("WAV", "PCM_16", np.zeros((400, 2)))).any(), "silence is none of these"


def test_channels_that_cancel_for_a_moment_are_read_and_those_that_always_do_are_refused() -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(48_000)
    stereo = np.stack([noise, noise], axis=1)
    stereo[16_000:32_000, 1] *= -1
    for kind, subtype in (("WAV", "FLOAT"), ("FLAC", "PCM_16")):
        with Recording(content(kind, subtype, stereo)) as recording:
            assert np.abs(recording.part(17_000, 31_000)).max() < 0.1
            assert np.abs(recording.part(33_000, 48_000)).max() > 0.2
            recording.refuse_cancelled()
    with pytest.raises(UserError, match="its 2 channels cancel each other"):
        read_waveform(content("WAV", "FLOAT", stereo), 17_000, 31_000)
