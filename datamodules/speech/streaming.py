"""Recordings from a Hugging Face stream, for training on what does not fit on the disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from d2v_lightning.nn.encoders.audio import RATE
from d2v_lightning.support.errors import UserError
from datamodules.shared.streaming import Stream
from datamodules.speech.sources import cell_of
from datamodules.speech.transcripts import normalize_transcript
from datamodules.speech.waveform import UNREADABLE, Waveform, normalise, read_waveform


class StreamedClips(Stream):
    """Clips of one split of a stream, see `Stream`. Those that are too short or too long count as not readable.

    Args:
        stream, column, text_column: see `open_audio_table`.
        batch_size, seed, shuffle, buffer: see `Stream`.
        least, most: samples at 16 kHz; None for no upper limit.
        normalised: mean 0 and variance 1 over the whole clip.
        transcribed: a row without a transcript counts as not readable.
        upper: transcripts in capitals.
        vocabulary: of the model; a row with other letters counts as not readable. None for any.
    """

    unreadable = UNREADABLE

    def __init__(
        self,
        stream: Any,
        column: str,
        text_column: str | None,
        batch_size: int,
        seed: int,
        buffer: int,
        least: int,
        most: int | None,
        normalised: bool,
        transcribed: bool,
        upper: bool,
        vocabulary: Sequence[str] | None = None,
    ) -> None:
        super().__init__(stream, column, batch_size, seed, True, buffer)
        self.text_column = text_column
        self.least, self.most, self.normalised = least, most, normalised
        self.transcribed, self.upper = transcribed, upper
        self.known = None if vocabulary is None else {*vocabulary, " "}

    def read(self, row: dict[str, Any]) -> Waveform:
        waveform = read_waveform(cell_of(row[self.column]))
        if not self.least <= len(waveform) <= (self.most or len(waveform)):
            raise UserError(f"{len(waveform) / RATE:.2f} s long, which min_seconds and max_seconds leave out")
        if self.transcribed:
            self._refuse(self._text(row))
        return waveform

    def finished(self, read: Waveform, row: dict[str, Any], name: str, index: int) -> dict[str, Any]:
        inputs = torch.from_numpy(normalise(read) if self.normalised else read)
        return {"inputs": inputs, **({"text": self._text(row)} if self.transcribed else {})}

    def _refuse(self, text: str) -> None:
        if not text:
            raise UserError("no transcript")
        if self.known is not None and (unknown := sorted(set(text) - self.known)):
            raise UserError(f"letters that the vocabulary lacks: {' '.join(unknown)}")

    def _text(self, row: dict[str, Any]) -> str:
        return normalize_transcript(row[self.text_column] if self.text_column else None, self.upper)
