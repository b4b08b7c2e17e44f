"""Transcripts of clips: in one form, with letters that the model knows, and no longer than the clips allow."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from d2v_lightning.flavour import rank_zero_warn
from d2v_lightning.nn.encoders.audio import feature_lengths
from d2v_lightning.support.errors import UserError
from d2v_lightning.support.lines import listed, whole_text
from datamodules.speech.manifests import Clip
from datamodules.speech.sources import SpeechSource, leave_out


def normalize_transcript(text: Any, upper: bool) -> str:
    """A transcript with single spaces, composed letters and, if asked for, in capitals; "" where it is no whole text."""
    try:
        words = unicodedata.normalize("NFC", " ".join(whole_text(text).split())) if isinstance(text, str) else ""
    except UserError:
        return ""
    return words.upper() if upper else words


def with_transcripts(
    source: SpeechSource,
    split: str,
    upper: bool,
    conv_layers: Sequence[Sequence[int]],
    vocabulary: Sequence[str] | None,
) -> SpeechSource:
    """The clips with normalised transcripts; those without any are left out, counted and named.

    Args:
        source: its clips are changed.
        split: what messages call it.
        upper: write them in capitals.
        conv_layers: of the encoder, which make frames of samples.
        vocabulary: of the model, where it has one already.

    Raises:
        ValueError: no clip has a transcript, or letters are not in the vocabulary.
    """
    if upper and any("\u0131" in (clip.text or "") for clip in source.clips):
        rank_zero_warn(
            f"transcripts of the {split} split have the letters i and \u0131, which data.upper makes one, I: set it to "
            "false for Turkish and Azerbaijani"
        )
    for number, clip in enumerate(source.clips):
        source.clips[number] = clip._replace(text=normalize_transcript(clip.text, upper))
    if all(not clip.text for clip in source.clips):
        raise UserError(
            f"{len(source)} of {len(source)} clips of the {split} split have no transcript, the first is "
            f"{source.clips[0].name}: fine-tuning needs them"
        )
    source = leave_out(source, split, lambda clip: not clip.text, "without a transcript")
    hasty = [clip.name for clip in source.clips if _frames_needed(clip) > feature_lengths(clip.samples, conv_layers)]
    if hasty:
        rank_zero_warn(
            f"{len(hasty)} of {len(source)} transcripts of the {split} split have more letters than their clips have "
            f"frames, and count 0 in the loss: {listed(hasty, 3)}. Do sound and transcript belong together?"
        )
    if vocabulary is not None:
        remedy = "set data.upper to false for small letters and true for capitals, or model.vocabulary to data"
        refuse_unknown(source, split, set(vocabulary), "the model's vocabulary", remedy)
    return source


def refuse_unknown(source: SpeechSource, split: str, known: set[str], whose: str, remedy: str) -> None:
    """Compare the letters of transcripts with those that are `known`.

    Raises:
        ValueError: there are others; `whose` known ones they are and the `remedy` are said.
    """
    foreign = [(clip, letters) for clip in source.clips if (letters := set(clip.text or "") - known - {" "})]
    if foreign:
        strange = " ".join(sorted(set().union(*(letters for _, letters in foreign))))
        first = foreign[0][0]
        raise UserError(
            f"{len(foreign)} transcripts of the {split} split have letters that {whose} lacks: {strange} (first in "
            f"{first.name}: {first.text}). Clean the transcripts, or {remedy}"
        )


def _frames_needed(clip: Clip) -> int:
    """CTC needs a frame a letter, and one between two of the same."""
    text = clip.text or ""
    return len(text) + sum(one == other for one, other in pairwise(text))
