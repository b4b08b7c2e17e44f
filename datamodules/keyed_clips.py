"""Clips that are read by (epoch, index), and what stands in for those that cannot be read."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Dataset

from d2v_lightning.errors import UserError
from datamodules.keyed_images import one_line
from datamodules.samplers import Key
from datamodules.speech_sources import SpeechSource
from datamodules.waveform import UNREADABLE, normalise

REPLACEMENTS = 100


class KeyedClips(Dataset[dict[str, Any]]):
    """Clips by (epoch, index), or by index for epoch 0. One that cannot be read is listed in the sample's "unreadable" as
    "name: reason", and replaced by the next shorter one that can, so that the batch stays in its budget. The other one is
    "repeated": in evaluation it counts in its own place only.

    Args:
        source: the clips.
        normalised: mean 0 and variance 1 over the whole clip.
        replace: where the number of samples matters more than that none counts twice: in training, in pre-training's
            validation, and on several devices, which need as many batches each. Otherwise a clip that cannot be read
            gives a sample without "inputs".
    """

    def __init__(self, source: SpeechSource, normalised: bool = True, replace: bool = True) -> None:
        self.source, self.normalised, self.replace = source, normalised, replace
        self._by_length = sorted(range(len(source)), key=lambda index: source.clips[index].samples)
        self._rank = {index: rank for rank, index in enumerate(self._by_length)}

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key | int) -> dict[str, Any]:
        """{"inputs" (S,), "index", "key", "text" where there are transcripts, "unreadable"}."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        unreadable: list[str] = []
        rank = self._rank[index]
        for _ in range(min(REPLACEMENTS, len(self))):
            place = self._by_length[rank]
            clip = self.source.clips[place]
            try:
                waveform = self.source.read(place)
            except UNREADABLE as error:
                unreadable.append(f"{clip.name}: {one_line(error)}")
                if not self.replace:
                    return {"unreadable": unreadable}
                rank -= 1  # the shortest is followed by the longest, at the risk of a batch beyond its budget
                continue
            waveform = waveform[: clip.samples]
            inputs = torch.from_numpy(normalise(waveform) if self.normalised else waveform)
            sample = {"inputs": inputs, "index": place, "key": (epoch, index), "unreadable": unreadable}
            sample["repeated"] = place != index
            return sample if clip.text is None else {**sample, "text": clip.text}
        raise UserError(
            f"{len(unreadable)} clips in a row cannot be read, the first is {unreadable[0]}: check the data"
        )
