"""Sound files to waveforms at 16 kHz: decoding with soundfile, resampling with soxr, normalisation."""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Iterator
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from d2v_lightning.nn.encoders.audio import RATE
from d2v_lightning.support.errors import NotFoundError, UserError

RATES = (1_000, 1_000_000)
"""The lowest and highest sample rate, in Hz, that is believed."""
TRUNCATED = 0.9
"""Of the samples that a header promises; those of an mp3 without a table of its frames are an estimate."""
UNREADABLE = (soundfile.SoundFileError, OSError, ValueError, EOFError)
"""What soundfile raises on files that are none, or broken."""
BLOCK = 1 << 20  # numbers that are decoded at once
CANCELLED = 1e-6  # of the power of the channels, in their mean

# What a program writes for a size that it does not know, because it writes to a pipe, is 0 or from here on.
UNKNOWN_SIZE = 0x7F00_0000
UNKNOWN_FRAMES = 1 << 62
# From libsndfile's log of a header. The second is of W64 and RF64, whose chunk of sound is not compared with the file.
DATA_SIZE = re.compile(r"^\s*(?:data|SSND|BODY|Data Size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
FILE_SIZE = re.compile(r"^\s*(?:riff|Riff size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
FRAMES = re.compile(r"^\s*Frames\s*: (\d+)$", re.MULTILINE)
LARGEST_OGG_PAGE = 65_307
MOST_SAMPLES_A_BYTE = {"FLAC": 8_192}  # 65,535 equal samples take a frame of 8 bytes or more

Waveform = NDArray[np.float32]


class _SoundFile(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no types
    """Reads on from where it is. soundfile seeks after each read, which fails at the end where a header is wrong."""

    def seekable(self) -> bool:
        return False


def open_sound(file: Any) -> soundfile.SoundFile:
    """A recording whose header is sound.

    Args:
        file: a path, of any bytes, or the bytes of a file.

    Raises:
        ValueError: it is no sound, its sample rate is absurd, or it is cut off: less than `TRUNCATED` of what its header
            promises is there.
        FileNotFoundError: there is no such file.
        OSError: it may not be opened.
    """
    content = file if isinstance(file, bytes) else None
    if content is None:
        _refuse_no_file(file)
    try:
        sound = _SoundFile(os.fsencode(file) if content is None else io.BytesIO(content))
        if sound.format in ("WAV", "WAVEX") and sound.frames == 0:
            sound = _with_unknown_size(sound, _part(file, 0))
    except soundfile.LibsndfileError as error:
        raise UserError(error.error_string.rstrip(".")) from error
    try:
        _check(sound, file)
    except Exception:
        sound.close()
        raise
    return sound


def _refuse_no_file(path: Any) -> None:
    """Name the system's reason where a file cannot be opened; libsndfile has one message for all of them."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UserError("it is not a file of sound")
        with open(path, "rb"):
            pass
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError("there is no such file") from error


def _part(file: Any, start: int, length: int = -1) -> bytes:
    """Bytes of a file from `start`, or from so many before its end where that is negative."""
    with io.BytesIO(file) if isinstance(file, bytes) else open(file, "rb") as opened:
        size = opened.seek(0, os.SEEK_END)
        opened.seek(max(0, size + start) if start < 0 else start)
        return opened.read(length)


def _with_unknown_size(sound: soundfile.SoundFile, content: bytes) -> soundfile.SoundFile:
    """The sound of a WAV that was written to a pipe with the size 0; others as they are."""
    place = content.find(b"data\0\0\0\0", 12)
    finished = 0 < int.from_bytes(content[4:8], "little") < UNKNOWN_SIZE and "Exiting parser" not in sound.extra_info
    if place < 0 or finished:
        return sound
    sound.close()
    return _SoundFile(io.BytesIO(content[: place + 4] + b"\xff" * 4 + content[place + 8 :]))


def _check(sound: soundfile.SoundFile, file: Any) -> None:
    if not RATES[0] <= sound.samplerate <= RATES[1]:
        raise UserError(f"its sample rate is {sound.samplerate} Hz: believed are {RATES[0]} to {RATES[1]} Hz")
    log, size = sound.extra_info, len(file) if isinstance(file, bytes) else os.path.getsize(file)
    if UNKNOWN_FRAMES > sound.frames > size * MOST_SAMPLES_A_BYTE.get(sound.format, UNKNOWN_FRAMES):
        raise UserError(f"its header promises {sound.frames} samples, more than {size} bytes can hold")
    of_file = FILE_SIZE.search(log) if sound.format in ("W64", "RF64") else None
    if sizes := DATA_SIZE.search(log) or of_file:
        promised, there = map(int, sizes.groups())
    elif sizes := FRAMES.search(log):
        promised, there = int(sizes[1]), sound.frames
    elif sound.format == "NIST":
        counted = re.search(rb"sample_count -i (\d+)", _part(file, 0, 1024))
        promised, there = int(counted[1]) if counted else 0, sound.frames
    else:
        promised = there = 0
    if there < TRUNCATED * promised and promised < UNKNOWN_SIZE:
        raise UserError(f"truncated, {100 * there / promised:.0f} % of its sound is there")
    if sound.format == "VOC" and "truncated" in log:
        raise UserError("truncated")
    if sound.format == "OGG" and not _ends_with_a_page(_part(file, -2 * LARGEST_OGG_PAGE)):
        raise UserError("truncated, it ends in the middle of a page")


def _ends_with_a_page(tail: bytes) -> bool:
    """Whether the last page of an Ogg file is whole. What follows the page that ends the stream does not matter."""
    place = tail.rfind(b"OggS")
    head = tail[place : place + 27]
    if place < 0 or len(head) < 27:
        return False
    sizes = tail[place + 27 : place + 27 + head[26]]
    end = place + 27 + head[26] + sum(sizes)
    return end == len(tail) or (end < len(tail) and bool(head[5] & 4))


def measure(file: Any) -> tuple[int, int]:
    """Samples of a recording at 16 kHz and its own sample rate, from its header, or by decoding where that does not say.

    Raises:
        ValueError, FileNotFoundError: see `open_sound`; or it holds no samples.
    """
    with open_sound(file) as sound:
        frames = sound.frames if _is_known(sound) else sum(map(len, _blocks(sound)))
        if not frames:
            raise UserError("it holds no samples")
        return samples_at_16k(frames, sound.samplerate), sound.samplerate


def read_waveform(file: Any, begin: int = 0, end: int | None = None) -> Waveform:
    """A recording, or a part of it, its channels averaged, at 16 kHz (S,).

    Args:
        file: a path, or the bytes of a file.
        begin, end: first sample at 16 kHz and the one after the last; None for the end of the recording. Only this part
            is held in memory, and decoded where the format can seek exactly. It is what resampling the whole gives.

    Raises:
        ValueError: there are no samples, less than `TRUNCATED` of what the header promises, or some are not finite;
            channels cancel each other; see `open_sound`. soundfile's errors pass through.
    """
    with Recording(file) as recording:
        waveform = recording.whole() if end is None and not begin else recording.part(begin, end)
        recording.refuse_cancelled()
        return waveform


class Recording:
    """A recording that is read in parts, its channels averaged.

    Args:
        file: a path, or the bytes of a file.

    Raises:
        ValueError, FileNotFoundError: see `open_sound`.
    """

    def __init__(self, file: Any) -> None:
        self._file, self._sound = file, open_sound(file)
        self.rate: int = self._sound.samplerate
        self.frames: int | None = self._sound.frames if _is_known(self._sound) else None
        self._powers = np.zeros(2)  # of what was read, see `_powers`
        self._held = np.zeros(0, np.float32)  # of formats that cannot seek: frames
        self._first = 0  # and where they begin
        # mpg123 seeks nearly exactly. Other formats do or refuse.
        self._seeks = self.frames is not None and self._sound.format != "MP3" and self._can_seek()

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *error: object) -> None:
        self._sound.close()

    def _can_seek(self) -> bool:
        try:
            self._sound.seek(min(1, self._sound.frames))
            self._sound.seek(0)
        except soundfile.LibsndfileError:
            self._anew()
            return False
        return True

    def _anew(self) -> None:
        self._sound.close()
        self._sound, self._held, self._first = open_sound(self._file), self._held[:0], 0

    def whole(self) -> Waveform:
        """(S,) at 16 kHz, see `read_waveform`."""
        mono = np.concatenate([np.zeros(0, np.float32), *self.blocks()])
        return _finite(mono if self.rate == RATE else soxr.resample(mono, self.rate, RATE))

    def blocks(self) -> Iterator[Waveform]:
        """All frames at the recording's own rate, from the first, in pieces (F,).

        Raises:
            ValueError: fewer came than the header promises.
        """
        count = 0
        for block in _blocks(self._sound):
            mono = self._mixed(block)
            count += len(mono)
            yield mono
        if count < TRUNCATED * (self.frames or 0):
            there, promised = samples_at_16k(count, self.rate), samples_at_16k(self.frames or 0, self.rate)
            raise UserError(f"truncated, {there} of {promised} samples are there")

    def _mixed(self, block: NDArray[np.float32]) -> Waveform:
        """Channels (F, C) to their mean (F,)."""
        mono: Waveform = block.mean(axis=1)
        self._powers += _powers(block, mono)
        return mono

    def refuse_cancelled(self) -> None:
        """Raises ValueError where the channels cancel each other in all that was read so far. A quiet moment may."""
        if self._powers[1] < CANCELLED * self._powers[0]:
            raise UserError(f"its {self._sound.channels} channels cancel each other: invert one, or keep one")

    def part(self, begin: int, end: int | None) -> Waveform:
        """(S,) from sample `begin` to `end` at 16 kHz, see `read_waveform`; shorter where the recording ends before."""
        if self.rate == RATE:
            return _finite(self._at(begin, None if end is None else end - begin))
        first = max(0, begin // RATE - 1)  # a whole second, where samples of both rates coincide; one for the filter
        count = None if end is None else (-(-end // RATE) + 1 - first) * self.rate
        mono = soxr.resample(self._at(first * self.rate, count), self.rate, RATE)
        return _finite(mono[begin - first * RATE : None if end is None else end - first * RATE])

    def _at(self, first: int, count: int | None) -> Waveform:
        """Frames from `first` on at the recording's own rate, at most `count` of them."""
        last = min(UNKNOWN_FRAMES if count is None else first + count, _last_frame(self._sound))
        if self._seeks:
            self._sound.seek(min(first, self.frames or 0))
            self._held, self._first = self._held[:0], first
        elif first < self._first:
            self._anew()
        while self._first + len(self._held) < last:
            wanted = min(max(1, BLOCK // self._sound.channels), last - self._first - len(self._held))
            block = self._sound.read(wanted, dtype="float32", always_2d=True)
            if not len(block):
                break
            self._held = np.concatenate([self._held, self._mixed(block)])
            past = min(max(0, first - self._first), len(self._held))
            self._held, self._first = self._held[past:], self._first + past
        return self._held[first - self._first :][: last - first]


def _is_known(sound: soundfile.SoundFile) -> bool:
    """Whether the header says how long it is. Ogg and FLAC that were written to a pipe do not."""
    return 0 < sound.frames < UNKNOWN_FRAMES


def _blocks(sound: soundfile.SoundFile) -> Iterator[NDArray[np.float32]]:
    """(F, C) until the end. Not `sound.blocks`, which repeats its last block where a truncated mp3 ends before that."""
    frames, left = max(1, BLOCK // sound.channels), _last_frame(sound)
    while len(block := sound.read(min(frames, left), dtype="float32", always_2d=True)):
        left -= len(block)
        yield block


def _last_frame(sound: soundfile.SoundFile) -> int:
    """Where to stop. Behind the last frame of a FLAC may be a tag, at which its decoder fails."""
    return int(sound.frames) if sound.format == "FLAC" and _is_known(sound) else UNKNOWN_FRAMES


def _powers(channels: NDArray[np.float32], mono: Waveform) -> NDArray[np.float64]:
    """Sums of squares over frames: the mean of channels (F, C), and that of their mean (F,)."""
    if channels.shape[1] == 1:
        return np.zeros(2)
    sums = [np.square(channels, dtype=np.float64).sum() / channels.shape[1], np.square(mono, dtype=np.float64).sum()]
    return np.array(sums)


def _finite(mono: Waveform) -> Waveform:
    if not len(mono):
        raise UserError("it holds no samples")
    if not np.isfinite(mono).all():
        raise UserError("some of its samples are not finite numbers")
    return mono


def stream_waveform(file: Any) -> Iterator[Waveform]:
    """The same recording in pieces, so that an hour of it needs no more memory than one piece.

    Raises:
        ValueError: see `read_waveform`.
    """
    with Recording(file) as recording:
        resampler = None if recording.rate == RATE else soxr.ResampleStream(recording.rate, RATE, 1, dtype="float32")
        for mono in recording.blocks():
            yield mono if resampler is None else resampler.resample_chunk(mono)
        if resampler is not None:
            yield resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True)
        recording.refuse_cancelled()


def samples_at_16k(frames: int, rate: int) -> int:
    """How many samples a recording has after resampling."""
    return frames if rate == RATE else -(-frames * RATE // rate)


def normalise(waveform: Waveform) -> Waveform:
    """Mean 0 and variance 1 over the whole clip, as released models were trained; silence stays silence."""
    centred = waveform - waveform.mean(dtype=np.float64)
    return (centred / np.sqrt(np.mean(np.square(centred), dtype=np.float64) + 1e-5)).astype(np.float32)
