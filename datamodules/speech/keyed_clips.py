"""Clips that are read by (epoch, index), and what stands in for those that cannot be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from d2v_lightning.nn.encoders.audio import RATE
from d2v_lightning.support.errors import UserError, reason_of
from datamodules.shared.files import FolderGoneError, GoneFiles
from datamodules.shared.samplers import Key
from datamodules.speech.crops import Crops
from datamodules.speech.sources import SpeechSource
from datamodules.speech.waveform import TRUNCATED, UNREADABLE, Waveform, normalise

REPLACEMENTS = 100
NORMALISED_OVER = 40 * RATE  # all of any clip of LibriSpeech


class KeyedClips(Dataset[dict[str, Any]]):
    """Clips by (epoch, index), or by index for epoch 0.

    A clip that cannot be read is listed in the sample's "unreadable" as "name: reason". The next shorter one that can be
    read takes its place, so that the batch stays in its budget. That one is "repeated": in evaluation it counts in its own
    place only.

    Args:
        source: the clips.
        normalised: mean 0 and variance 1 over the whole clip, or the `NORMALISED_OVER` around the crop of a longer one.
        replace: another clip takes the place of one that cannot be read. It is for training, for pre-training's
            validation, and for several devices, which need as many batches each. Otherwise the sample has no "inputs".
        crops: those of the collator. Of a clip longer than `NORMALISED_OVER` only what the crop needs is read. Others are
            read as a whole, and the collator crops them.

    Raises:
        FolderGoneError: on reading, where a folder has vanished, or the files of many keys in a row are gone.
    """

    def __init__(
        self, source: SpeechSource, normalised: bool = True, replace: bool = True, crops: Crops | None = None
    ) -> None:
        self.source, self.normalised, self.replace, self.crops = source, normalised, replace, crops
        self._by_length = sorted(range(len(source)), key=lambda index: source.clips[index].samples)
        self._gone = GoneFiles()
        self._rank = {index: rank for rank, index in enumerate(self._by_length)}

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key | int) -> dict[str, Any]:
        """{"inputs" (S,), "index", "key", "text" where there are transcripts, "unreadable"}."""
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Key | int]) -> list[dict[str, Any]]:
        """The samples of one batch, of which crops are as long."""
        pairs = [key if isinstance(key, tuple) else (0, key) for key in keys]
        lengths = [self.source.clips[index].samples for _, index in pairs]
        limit = max(lengths) if self.crops is None else self.crops.limit(lengths)
        return [self._sample(key, limit) for key in pairs]

    def _sample(self, key: Key, limit: int) -> dict[str, Any]:
        epoch, index = key
        unreadable: list[str] = []
        rank = self._rank[index]
        for _ in range(min(REPLACEMENTS, len(self))):
            place = self._by_length[rank]
            clip = self.source.clips[place]
            try:
                inputs = torch.from_numpy(self._read(place, key, limit))
            except FolderGoneError:
                raise
            except UNREADABLE as error:
                unreadable.append(f"{clip.name}: {reason_of(error)}")
                if place == index:
                    self._gone.note(error, unreadable[0])
                if not self.replace:
                    return {"unreadable": unreadable}
                rank -= 1  # the shortest is followed by the longest, at the risk of a batch beyond its budget
                continue
            if place == index:
                self._gone.note(None)
            sample = {"inputs": inputs, "index": place, "key": (epoch, index), "unreadable": unreadable}
            sample["repeated"] = place != index
            return sample if clip.text is None else {**sample, "text": clip.text}
        raise UserError(
            f"{len(unreadable)} clips in a row cannot be read, the first is {unreadable[0]}: check the data"
        )

    def _read(self, place: int, key: Key, limit: int) -> Waveform:
        """A clip as a whole, or of a long one the crop of `limit` samples that the collator would take."""
        length = self.source.clips[place].samples
        if self.crops is None or length <= max(limit, NORMALISED_OVER):
            waveform = self.source.read(place)[:length]
            return normalise(waveform) if self.normalised else waveform
        start = self.crops.start(key, length, limit)
        size = max(limit, NORMALISED_OVER) if self.normalised else limit
        first = min(max(0, start - (size - limit) // 2), length - size)
        around = self.source.read(place, first, first + size)
        if len(around) < max(limit, TRUNCATED * size):
            raise UserError(f"truncated, it ends before sample {first + size} of {length}")
        begin = min(start - first, len(around) - limit)
        return (normalise(around) if self.normalised else around)[begin : begin + limit]
