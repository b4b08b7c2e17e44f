"""Sound files to waveforms at 16 kHz: decoding with soundfile, resampling with soxr, normalisation."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from d2v_lightning.errors import UserError

RATE = 16_000
TRUNCATED = 0.9
"""Of the samples that a header promises; those of an mp3 without a table of its frames are an estimate."""
UNREADABLE = (soundfile.SoundFileError, OSError, ValueError, EOFError)
"""What soundfile raises on files that are none, or broken."""

Waveform = NDArray[np.float32]


def read_waveform(file: Any) -> Waveform:
    """A whole recording, its channels averaged, at 16 kHz (S,).

    Args:
        file: a path, or the bytes of a file.

    Raises:
        ValueError: there are no samples, or some are not finite; soundfile's errors pass through.
    """
    samples, rate = soundfile.read(
        io.BytesIO(file) if isinstance(file, bytes) else file, dtype="float32", always_2d=True
    )
    mono = samples.mean(axis=1)
    if rate != RATE:
        mono = soxr.resample(mono, rate, RATE)
    if not len(mono):
        raise UserError("it holds no samples")
    if not np.isfinite(mono).all():
        raise UserError("some of its samples are not finite numbers")
    return mono


def stream_waveform(path: str, seconds: float = 30.0) -> Iterator[Waveform]:
    """The same recording in pieces of about `seconds`, so that an hour of it needs no more memory than one piece."""
    with soundfile.SoundFile(path) as file:
        resampler = None if file.samplerate == RATE else soxr.ResampleStream(file.samplerate, RATE, 1, dtype="float32")
        # Not `file.blocks`, which repeats its last block where a truncated mp3 ends before its header says so.
        while len(block := file.read(int(seconds * file.samplerate), dtype="float32", always_2d=True)):
            mono = block.mean(axis=1)
            yield mono if resampler is None else resampler.resample_chunk(mono)
        if resampler is not None:
            yield resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True)


def samples_at_16k(frames: int, rate: int) -> int:
    """How many samples a recording has after resampling."""
    return frames if rate == RATE else int(np.ceil(frames * RATE / rate))


def normalise(waveform: Waveform) -> Waveform:
    """Mean 0 and variance 1 over the whole clip, as released models were trained; silence stays silence."""
    centred = waveform - waveform.mean(dtype=np.float64)
    return (centred / np.sqrt(np.mean(np.square(centred), dtype=np.float64) + 1e-5)).astype(np.float32)
