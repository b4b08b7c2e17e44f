"""Lists of recordings and transcripts: LibriSpeech's, fairseq's, and JSON lines. Bad lines are left out and named."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from d2v_lightning.letters import SEPARATOR
from d2v_lightning.support.errors import UserError
from d2v_lightning.support.lines import decoded, good_lines, numbered_lines, whole_text
from datamodules.shared.files import composed, expanded
from datamodules.shared.tables import json_record

SHORTER = 0.1  # seconds that a piece of a recording may be shorter than the whole


class Clip(NamedTuple):
    """One recording: its name, its `samples` at 16 kHz, its transcript or None, and where it is."""

    name: str
    samples: int
    text: str | None
    file: Any


class Entry(NamedTuple):
    """A line of a manifest: its `place` as file:line, and the path and transcript of the recording.

    piece: the seconds (offset, duration) that NeMo's manifests take of it, or None.
    """

    place: str
    path: str
    text: str | None
    piece: tuple[Any, Any] | None = None


def transcripts_of(paths: Iterable[str], bad: list[str]) -> dict[str, str]:
    """Transcripts of LibriSpeech's `*.trans.txt` files ("<id> WORDS" a line), by the composed path of the recording without
    its ending.

    Args:
        paths: of the files.
        bad: takes note of lines that cannot be used, and of recordings that have two transcripts, which are left without.
    """
    texts: dict[str, str] = {}
    twice: set[str] = set()
    for path in paths:
        for number, line in good_lines(path, bad, names=True):
            name, _, words = line.strip().partition(" ")
            if not name:
                continue
            recording = composed(os.path.join(os.path.dirname(path), name))
            try:
                words = whole_text(words.strip())
            except UserError as error:
                bad.append(f"{path}:{number}: {error}")
                continue
            if texts.setdefault(recording, words) != words:
                twice.add(recording)
                bad.append(f"{path}:{number}: another transcript of {name}")
    return {recording: words for recording, words in texts.items() if recording not in twice}


def read_manifest(path: Path, bad: list[str]) -> list[Entry]:
    """What a manifest lists, each once: fairseq's `.tsv` (with `.ltr` or `.wrd` beside it), or JSON lines.

    Args:
        path: of the manifest.
        bad: takes note of lines that cannot be used.

    Raises:
        ValueError: it is empty, none of its lines can be used, or transcripts beside it are more or fewer than its rows.
    """
    lines = [(number, line) for number, line in good_lines(path, bad, names=True) if line.strip()]
    if not lines and not bad:
        raise UserError(f"{path} is empty: a manifest lists recordings")
    read = _rows if path.suffix.lower() == ".tsv" else _records
    names = _Names()
    entries: dict[tuple[str, str | None], Entry] = {}
    for entry in read(path, lines, bad):
        spelt = entry._replace(path=names.spelt(entry.path))
        if (first := entries.setdefault((spelt.path, spelt.text), spelt)) is not spelt:
            bad.append(f"{entry.place} is {first.place} again")
    if not entries:
        raise UserError(f"none of the {len(bad)} lines of {path} can be used, the first is {bad[0]}: check them")
    return list(entries.values())


def is_piece(entry: Entry, seconds: float) -> bool:
    """Whether it takes only a part of a recording that is so many seconds long."""
    if entry.piece is None:
        return False
    offset, duration = entry.piece
    return offset not in (0, None) or (isinstance(duration, (int, float)) and seconds - duration > SHORTER)


def _records(path: Path, lines: list[tuple[int, str]], bad: list[str]) -> Iterable[Entry]:
    """JSON lines: "audio" (or NeMo's "audio_filepath") and "text"."""
    for number, line in lines:
        place = f"{path}:{number}"
        try:
            entry = json_record(line)
            file, text = entry.get("audio", entry.get("audio_filepath")), entry.get("text")
            if not isinstance(file, str) or not isinstance(text, str | None):
                raise UserError("a name and a transcript are strings")
            text = None if text is None else whole_text(text)
        except UserError as error:
            bad.append(f'{place} is not a line like {{"audio": "clip.wav", "text": "..."}} ({error})')
            continue
        piece = (entry["offset"], entry.get("duration")) if "offset" in entry else None
        yield Entry(place, str(path.parent / expanded(file)), text, piece)


def _rows(path: Path, lines: list[tuple[int, str]], bad: list[str]) -> Iterable[Entry]:
    """Fairseq's: the root folder, then "<path><TAB><samples>" a line."""
    (_, root), *rows = lines or [(1, "")]
    if "\t" in root:
        raise UserError(f"{path}:1 is a row: the first line of a manifest is the folder that paths begin from")
    texts: list[str | None] = [None] * len(rows)
    beside = next((there for end in (".ltr", ".wrd") if (there := path.with_suffix(end)).is_file()), None)
    if beside is not None:
        texts = _transcripts_beside(beside, bad)
        while len(texts) > len(rows) and texts[-1] == "":
            texts.pop()
    if len(texts) != len(rows):
        raise UserError(f"{path} lists {len(rows)} clips, the transcripts beside it are {len(texts)}: they must agree")
    for (number, row), text in zip(rows, texts, strict=True):
        name, _, samples = row.partition("\t")
        if not name.strip() or not samples.strip().isdecimal():
            bad.append(f"{path}:{number} is not '<path><TAB><samples>'")
        elif beside is None or text is not None:
            place = path.parent / expanded(root.strip()) / expanded(name)
            yield Entry(f"{path}:{number}", str(place), text)


def _transcripts_beside(path: Path, bad: list[str]) -> list[str | None]:
    """One a line, of fairseq's words or letters ("H E L L O | Y O U |"); None where it cannot be read."""
    texts: list[str | None] = []
    for number, line in numbered_lines(path):
        try:
            text = decoded(line)
        except UserError as error:
            bad.append(f"{path}:{number}: {error}")
            texts.append(None)
            continue
        texts.append((text.replace(" ", "").replace(SEPARATOR, " ") if path.suffix == ".ltr" else text).strip())
    return texts


class _Names:
    """Paths as the disk spells them: macOS writes letters decomposed, and manifests are often made elsewhere."""

    def __init__(self) -> None:
        self._listed: dict[str, dict[str, str]] = {}

    def spelt(self, path: str) -> str:
        """The path, or the one that is there and looks the same."""
        if path.isascii() or os.path.exists(path):
            return path
        for form in ("NFC", "NFD"):
            other = unicodedata.normalize(form, path)
            if os.path.exists(other):
                return other
        folder, name = os.path.split(path)
        if not name:
            return path
        folder = self.spelt(folder)
        if folder not in self._listed:
            there = os.listdir(folder) if os.path.isdir(folder) else []
            self._listed[folder] = {composed(one): one for one in there}
        return os.path.join(folder, self._listed[folder].get(composed(name), name))
