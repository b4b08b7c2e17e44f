"""Recordings of any length, in overlapping windows that give the frames of the whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch.utils.data import IterableDataset, get_worker_info

from d2v_lightning.encoders.audio import CONV_LAYERS, feature_lengths
from datamodules.keyed_images import one_line
from datamodules.samplers import world
from datamodules.waveform import RATE, TRUNCATED, UNREADABLE, Waveform, samples_at_16k, stream_waveform

SETTLE = 1  # seconds before and after a window that the resampler reads to settle


class SpeechWindows(IterableDataset[dict[str, Any]]):
    """Batches of windows of one recording, in order; memory does not grow with its length.

    A window is `core_seconds` long, with `context_seconds` of what lies before and after it on either side; of its frames
    those of the core are kept. Windows begin on whole seconds, where frames of the window and of the recording coincide.
    Normalisation is that of the whole recording, from a first pass over it. A recording no longer than one window is one.

    Args:
        paths: of the recordings; one that cannot be read is left out and named.
        normalised: mean 0 and variance 1 over the whole recording.
        conv_layers: of the encoder.
        core_seconds, context_seconds: see above, whole seconds.
        windows: in a batch.
    """

    def __init__(
        self,
        paths: Sequence[str],
        normalised: bool = True,
        conv_layers: Sequence[Sequence[int]] = CONV_LAYERS,
        core_seconds: int = 20,
        context_seconds: int = 5,
        windows: int = 8,
    ) -> None:
        if min(core_seconds, context_seconds, windows) < 1:  # without context frames between windows would be missing
            raise ValueError(
                f"core_seconds {core_seconds}, context_seconds {context_seconds}, windows {windows}: permitted is 1 or more"
            )
        stride = int(np.prod([layer[2] for layer in conv_layers]))
        if RATE % stride:
            raise ValueError(
                f"the encoder's frames are {stride} samples apart, which does not divide a second of {RATE}"
            )
        self.paths, self.normalised, self.conv_layers = list(paths), normalised, conv_layers
        self.core, self.context, self.windows = core_seconds, context_seconds, windows
        self.frames_per_second = RATE // stride

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """{"inputs" (W, S), "padding_mask" (W, S), "keep" (W, 2) first and end frame, "index" (W,), "last"}."""
        rank, world_size = world()
        worker = get_worker_info()
        number, of = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for index in range(rank * of + number, len(self.paths), world_size * of):
            try:
                yield from self._recording(index)
            except UNREADABLE as error:
                rank_zero_warn(f"1 unreadable recording left out: {self.paths[index]}: {one_line(error)}")

    def _recording(self, index: int) -> Iterator[dict[str, Any]]:
        path = self.paths[index]
        mean, scale, samples = _statistics(path)
        info = soundfile.info(path)
        if samples < TRUNCATED * samples_at_16k(info.frames, info.samplerate):
            rank_zero_warn(f"{path} is truncated: transcribed are the {samples / RATE:.1f} s that are there")
        if feature_lengths(samples, self.conv_layers) < 1:
            raise ValueError(f"{samples} samples are too few for one frame")
        if not self.normalised:
            mean, scale = 0.0, 1.0
        starts = list(range(0, max(1, -(-samples // RATE)), self.core))
        if len(starts) > 1 and feature_lengths(samples - starts[-1] * RATE, self.conv_layers) < 1:
            starts.pop()  # what is left makes no frame of its own: the context of the window before has it
        with soundfile.SoundFile(path) as file:
            for first in range(0, len(starts), self.windows):
                chosen = starts[first : first + self.windows]
                clips, keep = [], []
                for start in chosen:
                    begin = max(0, start - self.context)
                    final = start == starts[-1]
                    end = samples / RATE if final else start + self.core + self.context
                    clip = (_cut(file, begin, end, samples) - mean) * scale
                    frames = feature_lengths(len(clip), self.conv_layers)
                    skipped = (start - begin) * self.frames_per_second
                    keep.append(
                        [skipped, frames if final else min(frames, skipped + self.core * self.frames_per_second)]
                    )
                    clips.append(torch.from_numpy(clip.astype(np.float32)))
                lengths = torch.tensor([len(clip) for clip in clips])
                batch = {
                    "inputs": torch.nn.utils.rnn.pad_sequence(clips, batch_first=True),
                    "keep": torch.tensor(keep),
                    "index": torch.full((len(clips),), index),
                    "last": chosen[-1] == starts[-1],
                }
                if (lengths != lengths[0]).any():
                    batch["padding_mask"] = torch.arange(int(lengths.max())) >= lengths[:, None]
                yield batch


def _statistics(path: str) -> tuple[float, float, int]:
    """Mean, 1 / standard deviation and number of samples of a recording at 16 kHz."""
    total = squares = 0.0
    count = 0
    for piece in stream_waveform(path):
        wide = piece.astype(np.float64)
        if not np.isfinite(wide).all():
            raise ValueError("some of its samples are not finite numbers")
        total, squares, count = total + wide.sum(), squares + np.square(wide).sum(), count + len(wide)
    if not count:
        raise ValueError("it holds no samples")
    mean = total / count
    return mean, float(1 / np.sqrt(max(0.0, squares / count - mean**2) + 1e-5)), count


def _cut(file: soundfile.SoundFile, begin: int, end: float, samples: int) -> Waveform:
    """Samples from second `begin` to second `end` at 16 kHz, of a recording that has so many."""
    rate = file.samplerate
    before = min(begin, SETTLE)
    file.seek((begin - before) * rate)
    block = file.read(int((end + SETTLE - begin + before) * rate) + 1, dtype="float32", always_2d=True)
    mono = block.mean(axis=1)
    if rate != RATE:
        mono = soxr.resample(mono, rate, RATE)
    first = before * RATE
    length = min(round(end * RATE), samples) - begin * RATE
    return mono[first : first + length]
