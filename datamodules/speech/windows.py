"""Recordings of any length: short ones with others of like length, long ones in windows that give the frames of the whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from d2v_lightning.nn.encoders.audio import CONV_LAYERS, RATE, feature_lengths
from d2v_lightning.support.errors import UserError, reason_of
from datamodules.shared.files import refuse_gone
from datamodules.shared.predicting import Done
from datamodules.speech.waveform import (
    UNREADABLE,
    Recording,
    Waveform,
    measure,
    normalise,
    read_waveform,
    stream_waveform,
)

POOL = 256  # recordings among which those of like length are found
TICKS = 5  # a second; windows begin on one


class SpeechWindows(IterableDataset[dict[str, Any]]):
    """Batches of recordings, and of windows of one recording that is longer than a window, each read when it is needed.

    Recordings no longer than one core come whole. Of each `POOL` in a row, which share a worker, those of like length share a
    batch of no more samples than `windows` windows have. Who shares a batch follows from the list of paths alone.

    A longer recording comes in windows, in order. A window has a core, of which the frames are kept, and `context_seconds` of
    what lies before and after it. A core ends at the quietest place between a quarter and all of `core_seconds`. So it
    follows from what is heard there, and not from where the recording began. Windows begin on fifths of a second, where
    frames of the window and of the recording coincide. Normalisation is that of the whole recording, from a first pass.

    Args:
        paths: of the recordings; one that cannot be read is left out, and listed in a batch's "unreadable".
        normalised: mean 0 and variance 1 over the whole recording.
        conv_layers: of the encoder.
        core_seconds, context_seconds: see above.
        windows: in a batch.

    Raises:
        ValueError: an argument is out of its range, or frames do not fall on fifths of a second.
        FolderGoneError: on reading, where the folder of a recording has vanished.
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
            raise UserError(
                f"core_seconds {core_seconds}, context_seconds {context_seconds}, windows {windows}: permitted is 1 or more"
            )
        stride = int(np.prod([layer[2] for layer in conv_layers]))
        if RATE // TICKS % stride:
            raise UserError(
                f"the encoder's frames are {stride} samples apart, which does not divide a fifth of a second, {RATE // TICKS}"
            )
        self.paths, self.normalised, self.conv_layers = list(paths), normalised, conv_layers
        self.share = (0, 1)  # (rank, world size); a worker process cannot ask for it
        self.done: Done = np.zeros(len(self.paths), bool)  # recordings to leave out
        self.core, self.context, self.windows = core_seconds * TICKS, context_seconds * TICKS, windows
        self.frames_per_tick = RATE // TICKS // stride

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """{"inputs" (W, S), "padding_mask" (W, S), "keep" (W, 2) first and end frame, "index" (W,), "last" (W,) bool, True =
        a recording's last window}, and {"unreadable": [...]}."""
        rank, world_size = self.share
        worker = get_worker_info()
        number, of = (0, 1) if worker is None else (worker.id, worker.num_workers)
        step = POOL * world_size * of
        for start in range(POOL * (rank * of + number), len(self.paths), step):
            places = range(start, min(start + POOL, len(self.paths)))
            if not self.done[start : places.stop].all():
                yield from self._pool(places)

    def _pool(self, places: range) -> Iterator[dict[str, Any]]:
        unreadable: list[str] = []
        lengths: dict[int, int] = {}
        for index in places:
            try:
                lengths[index] = measure(self.paths[index])[0]
            except UNREADABLE as error:
                unreadable.append(self._left_out(index, error))
        longest = self.core * RATE // TICKS
        budget = self.windows * (self.core + 2 * self.context) * RATE // TICKS
        short = sorted((length, index) for index, length in lengths.items() if length <= longest)
        for batch in _batches(short, budget):
            yield from self._whole([index for index in batch if not self.done[index]], unreadable)
        for index, length in lengths.items():
            if length > longest and not self.done[index]:
                try:
                    yield from self._recording(index)
                except UNREADABLE as error:
                    unreadable.append(self._left_out(index, error))
        if unreadable:
            yield {"unreadable": unreadable}

    def _whole(self, places: Sequence[int], unreadable: list[str]) -> Iterator[dict[str, Any]]:
        """A batch of whole recordings, where any can be read."""
        clips: dict[int, Waveform] = {}
        for index in places:
            try:
                waveform = read_waveform(self.paths[index])
                if feature_lengths(len(waveform), self.conv_layers) < 1:
                    raise UserError(f"{len(waveform)} samples are too few for one frame")
                clips[index] = normalise(waveform) if self.normalised else waveform
            except UNREADABLE as error:
                unreadable.append(self._left_out(index, error))
        if clips:
            keep = [[0, feature_lengths(len(clip), self.conv_layers)] for clip in clips.values()]
            yield _padded(list(clips.values()), keep, list(clips), [True] * len(clips))

    def _left_out(self, index: int, error: Exception) -> str:
        """The entry of a recording that cannot be read in "unreadable"; refuses where its folder has vanished."""
        refuse_gone(self.paths[index], error)
        return f"{self.paths[index]}: {reason_of(error)}"

    def _recording(self, index: int) -> Iterator[dict[str, Any]]:
        path = self.paths[index]
        mean, scale, samples, loudness = _statistics(path)
        if feature_lengths(samples, self.conv_layers) < 1:
            raise UserError(f"{samples} samples are too few for one frame")
        if not self.normalised:
            mean, scale = 0.0, 1.0
        starts = _starts(loudness, self.core)
        if len(starts) > 1 and feature_lengths(samples - starts[-1] * RATE // TICKS, self.conv_layers) < 1:
            starts.pop()  # what is left makes no frame of its own: the context of the window before has it
        with Recording(path) as recording:
            for first in range(0, len(starts), self.windows):
                chosen = starts[first : first + self.windows]
                clips, keep = [], []
                for number, start in enumerate(chosen, start=first):
                    begin = max(0, start - self.context)
                    after = starts[number + 1] if start != starts[-1] else None
                    end = samples * TICKS / RATE if after is None else after + self.context
                    clip = (
                        recording.part(begin * RATE // TICKS, min(round(end * RATE / TICKS), samples)) - mean
                    ) * scale
                    frames = feature_lengths(len(clip), self.conv_layers)
                    kept = frames if after is None else min(frames, (after - begin) * self.frames_per_tick)
                    keep.append([(start - begin) * self.frames_per_tick, kept])
                    clips.append(clip.astype(np.float32))
                yield _padded(clips, keep, [index] * len(clips), [start == starts[-1] for start in chosen])


def _batches(clips: Sequence[tuple[int, int]], budget: int) -> Iterator[list[int]]:
    """Places of (length, place), sorted, in batches of no more than `budget` samples, or of one."""
    batch: list[int] = []
    for length, place in clips:
        if batch and (len(batch) + 1) * length > budget:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _padded(
    clips: Sequence[Waveform], keep: list[list[int]], index: list[int], last: list[bool]
) -> dict[str, torch.Tensor]:
    """A batch as `SpeechWindows` gives it."""
    lengths = torch.tensor([len(clip) for clip in clips])
    batch = {
        "inputs": torch.nn.utils.rnn.pad_sequence([torch.from_numpy(clip) for clip in clips], batch_first=True),
        "keep": torch.tensor(keep),
        "index": torch.tensor(index),
        "last": torch.tensor(last),
    }
    if (lengths != lengths[0]).any():
        batch["padding_mask"] = torch.arange(int(lengths.max())) >= lengths[:, None]
    return batch


def _statistics(path: str) -> tuple[float, float, int, np.ndarray]:
    """Mean, 1 / standard deviation and number of samples of a recording at 16 kHz, and the variance in each half tick."""
    total = squares = 0.0
    count, half = 0, RATE // TICKS // 2
    rest, variances = np.zeros(0), []
    for piece in stream_waveform(path):
        wide = piece.astype(np.float64)
        if not np.isfinite(wide).all():
            raise UserError("some of its samples are not finite numbers")
        total, squares, count = total + wide.sum(), squares + np.square(wide).sum(), count + len(wide)
        rest = np.concatenate([rest, wide])
        whole = len(rest) // half * half
        variances.append(rest[:whole].reshape(-1, half).var(axis=1))
        rest = rest[whole:]
    if not count:
        raise UserError("it holds no samples")
    if len(rest):
        variances.append(rest.var(keepdims=True))
    mean = total / count
    scale = float(1 / np.sqrt(max(0.0, squares / count - mean**2) + 1e-5))
    return mean, scale, count, np.concatenate(variances)


def _starts(loudness: np.ndarray, core: int) -> list[int]:
    """The ticks at which cores of at most `core` ticks begin, the first at 0.

    Args:
        loudness: the variance in each half tick.
        core: ticks.
    """
    ticks, starts = -(-len(loudness) // 2), [0]
    around = np.append(loudness, 0.0)[: 2 * ticks].reshape(-1, 2)  # (ticks, 2): the first and second half of each
    quiet = around[1:, 0] + around[:-1, 1]  # around the beginning of tick 1, 2, ...
    while ticks - starts[-1] > core:
        least, most = starts[-1] + max(1, core // 4), starts[-1] + core
        starts.append(least + int(quiet[least - 1 : most].argmin()))
    return starts
