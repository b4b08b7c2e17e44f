"""What clips there are: LibriSpeech's layout, folders, manifests, Hugging Face data sets."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from d2v_lightning.flavour import rank_zero_info, rank_zero_warn
from d2v_lightning.nn.encoders.audio import RATE
from d2v_lightning.support.errors import NotFoundError, UserError, reason_of
from d2v_lightning.support.lines import listed
from datamodules.shared.files import RECORDINGS, TRANSCRIPTS, composed, expanded, files_below, files_of, refuse_gone
from datamodules.shared.tables import cells_of, open_table
from datamodules.speech.manifests import Clip, is_piece, read_manifest, transcripts_of
from datamodules.speech.waveform import UNREADABLE, Waveform, measure, read_waveform

PROGRESS_FROM = 1000
TEXT_COLUMNS = ("text", "sentence", "transcription", "transcript", "normalized_text")


class SpeechSource:
    """Clips of one or more splits.

    Args:
        clips: what there is.
        open_file: a clip's `file` to a path or bytes; None where it is a path.
    """

    def __init__(self, clips: Sequence[Clip], open_file: Callable[[Any], Any] | None = None) -> None:
        self.clips, self._open_file = list(clips), open_file

    def __len__(self) -> int:
        return len(self.clips)

    def read(self, index: int, begin: int = 0, end: int | None = None) -> Waveform:
        """The clip, or its samples from `begin` to `end`, at 16 kHz (S,), not normalised.

        Raises:
            FolderGoneError: the folder that it was found in has vanished.
            ValueError, FileNotFoundError: see `read_waveform`.
        """
        file = self.opened(self.clips[index].file)
        try:
            return read_waveform(file, begin, end)
        except UNREADABLE as error:
            if isinstance(file, str):
                refuse_gone(file, error)
            raise

    def opened(self, file: Any) -> Any:
        """A clip's `file` as a path or bytes."""
        return file if self._open_file is None else self._open_file(file)

    def kept(self, wanted: Callable[[Clip], bool]) -> SpeechSource:
        """Those clips that are wanted."""
        return SpeechSource([clip for clip in self.clips if wanted(clip)], self._open_file)


class JoinedSource(SpeechSource):
    """The clips of several sources, one after the other; `file` is (number of the source, its own `file`)."""

    def __init__(self, sources: Sequence[SpeechSource]) -> None:
        self._sources = sources
        super().__init__(
            [clip._replace(file=(number, clip.file)) for number, source in enumerate(sources) for clip in source.clips],
            self._open_one,
        )

    def _open_one(self, file: tuple[int, Any]) -> Any:
        number, own = file
        return self._sources[number].opened(own)


def open_split(root: str, split: str) -> SpeechSource:
    """The clips of one split of files.

    Args:
        root: a folder, or a single recording.
        split: a folder or manifest below it (`.tsv`, `.jsonl` or `.json`); "" for all of `root`.

    Raises:
        FileNotFoundError: there is no such folder or split; the message lists what there is.
        ValueError: it holds no sound that can be read, or is a Hugging Face data set.
    """
    place = _place_of(root, split)
    if place.is_dir():
        source = _from_folder(place)
    elif place.suffix.lower() in RECORDINGS:
        source = SpeechSource(_with_lengths([Clip(str(place), -1, None, str(place))], str(place)))
    else:
        source = _from_manifest(place)
    if not len(source):
        raise UserError(f"{place} holds no readable sound ({', '.join(RECORDINGS)}): point data.root to recordings")
    return source


def recordings_of(root: str, split: str) -> list[str]:
    """Paths of the recordings of one split of files. Those of a folder are not opened, so that some may be unreadable.

    Args:
        root, split: see `open_split`.

    Raises:
        FileNotFoundError: there is no such folder or split, or no recording in it.
        ValueError: see `open_split`.
    """
    place = _place_of(root, split)
    if place.is_dir() or place.suffix.lower() in RECORDINGS:
        return files_of(place, RECORDINGS, "recording")
    return [clip.file for clip in open_split(root, split).clips]


def _place_of(root: str, split: str) -> Path:
    """The recording, manifest or folder that a split is, or a refusal; see `open_split`."""
    folder = expanded(root)
    if not folder.exists():
        raise NotFoundError(
            f"data.root {root} does not exist: give a folder of recordings (a Hugging Face data set is data.dataset)"
        )
    if _is_table(folder):
        raise UserError(f"data.root {root} is a Hugging Face data set: set data.dataset to it, and data.root to null")
    place = find_split(root, split)
    if place is None:
        there = sorted(path.name for path in folder.iterdir())[:12] if folder.is_dir() else []
        raise NotFoundError(f"{root} has no {split!r}: it holds {', '.join(there) or 'nothing'}")
    return place


def find_split(root: str, split: str) -> Path | None:
    """The recording, manifest or folder that a split is; None where there is none."""
    place = expanded(root) / split if split else expanded(root)
    manifests = (place, *(place.with_name(place.name + ending) for ending in (".tsv", ".jsonl", ".json")))
    return next((path for path in manifests if path.is_file()), place if place.is_dir() else None)


def _is_table(folder: Path) -> bool:
    """Whether a folder is one of `datasets`, or of parquet files, also below `data` as the hub has them."""
    if not folder.is_dir():
        return folder.suffix == ".parquet"
    saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    return saved or any(folder.glob("*.parquet")) or any(folder.glob("data/*.parquet"))


def _from_folder(folder: Path) -> SpeechSource:
    """All recordings below a folder, with the transcripts of `*.trans.txt` files beside them."""
    found = files_below(folder, (*RECORDINGS, TRANSCRIPTS))
    bad: list[str] = []
    texts = transcripts_of((path for path in found if path.lower().endswith(TRANSCRIPTS)), bad)
    _say_lines(bad, str(folder))
    paths = [path for path in found if not path.lower().endswith(TRANSCRIPTS)]
    clips = [Clip(path, -1, texts.get(composed(os.path.splitext(path)[0])), path) for path in paths]
    return SpeechSource(_with_lengths(clips, str(folder)))


def _from_manifest(path: Path) -> SpeechSource:
    bad: list[str] = []
    entries = {(entry.path, entry.text): entry for entry in read_manifest(path, bad)}
    clips = _with_lengths([Clip(entry.path, -1, entry.text, entry.path) for entry in entries.values()], str(path))
    whole: list[Clip] = []
    for clip in clips:
        if not is_piece(entry := entries[clip.name, clip.text], clip.samples / RATE):
            whole.append(clip)
            continue
        offset, duration = entry.piece or (None, None)
        bad.append(
            f"{entry.place} is a piece of {clip.name} (offset {offset}, duration {duration}): whole recordings are read, "
            "cut it out"
        )
    if not whole:
        raise UserError(f"none of the {len(bad)} lines of {path} can be used, the first is {bad[0]}")
    _say_lines(bad, str(path))
    return SpeechSource(whole)


def _say_lines(bad: list[str], where: str) -> None:
    if bad:
        rank_zero_warn(f"{len(bad)} line(s) of {where} left out: {listed(bad)}")


class TableRows:
    """Row numbers of a Hugging Face table to the paths or bytes of its recordings."""

    def __init__(self, table: Any, column: str) -> None:
        self.table, self.column = table, column

    def __call__(self, row: int) -> Any:
        return cell_of(self.table[row][self.column])


def cell_of(audio: Mapping[str, Any] | None) -> Any:
    """The bytes of a {bytes, path} cell, or else its path.

    Raises:
        ValueError: it is empty.
    """
    if audio is None or (audio["bytes"] is None and not audio["path"]):
        raise UserError("there is no sound in this row")
    return audio["bytes"] if audio["bytes"] is not None else audio["path"]


def open_audio_table(
    dataset: str, config: str | None, split: str, text_column: str | None, streaming: bool
) -> tuple[Any, str, str | None]:
    """One split of a Hugging Face data set with recordings as {bytes, path}, their column, and the transcripts' or None.

    Args:
        dataset: a folder made by `save_to_disk`, parquet (a file, or a folder of them), or a name on the hub.
        config: its configuration ("clean"), for names on the hub.
        split: "" for the first.
        text_column: of the transcripts; None for the one that is named as transcripts are.
        streaming: a `datasets.IterableDataset`; fetches nothing yet.

    Raises:
        FileNotFoundError: there is no such data set or split.
        ValueError: there is no column of audio, or not the one of transcripts that was asked for.
    """
    tables = open_table(dataset, config, streaming=streaming)
    if split and split not in tables:
        raise NotFoundError(f"{dataset} has no split {split!r}: it has {', '.join(tables)}")
    from datasets import Audio

    table = tables[split or next(iter(tables))]
    if table.features is None:  # of a stream that does not say
        table = table._resolve_features()
    kinds = table.features
    column = next((key for key, kind in kinds.items() if isinstance(kind, Audio) or key == "audio"), None)
    if column is None:
        raise UserError(f"{dataset} has no column of audio among {', '.join(kinds)}")
    kind = kinds[column]
    if not (
        isinstance(kind, (Audio, Mapping)) or getattr(kind, "dtype", "").removeprefix("large_") in ("string", "binary")
    ):
        raise UserError(f"column {column!r} of {dataset} is of type {kind}: recordings, paths or bytes are needed")
    if text_column is not None and text_column not in kinds:
        raise UserError(f"{dataset} has no column {text_column!r} (text_column), it has {', '.join(kinds)}")
    text = text_column or next((key for key in TEXT_COLUMNS if key in kinds), None)
    wanted = table.select_columns([column] if text is None else [column, text])
    return wanted.cast_column(column, Audio(decode=False)), column, text


def open_table_split(
    dataset: str, config: str | None, split: str, text_column: str | None = None, streaming: bool = False
) -> SpeechSource:
    """The clips of one split of a Hugging Face data set, decoded by soundfile.

    Args:
        dataset, config, split, text_column: see `open_audio_table`.
        streaming: fetch no other split; this one is read into memory.

    Raises:
        FileNotFoundError: see `open_audio_table`.
        ValueError: see there, or none of its recordings can be read.
    """
    table, column, text = open_audio_table(dataset, config, split, text_column, streaming)
    if streaming:
        table = list(table)
        texts = [row[text] if text else None for row in table]
    else:
        texts = list(cells_of(table, text)) if text else [None] * len(table)
    rows, where = TableRows(table, column), f"{dataset}[{split}]" if split else dataset
    clips = [
        Clip(f"{where}[{row}]", -1, words if isinstance(words, str) else None, row) for row, words in enumerate(texts)
    ]
    return SpeechSource(_with_lengths(clips, where, rows), rows)


def _with_lengths(clips: list[Clip], where: str, open_file: Callable[[Any], Any] | None = None) -> list[Clip]:
    """The clips with their lengths read from their headers; those that cannot be read are left out, and named."""

    def measured(clip: Clip) -> tuple[Clip, int] | str:
        try:
            samples, rate = measure(clip.file if open_file is None else open_file(clip.file))
        except UNREADABLE as error:
            return f"{' '.join(clip.name.split())}: {reason_of(error)}"
        return clip._replace(samples=samples), rate

    with ThreadPoolExecutor(8) as pool:
        found = list(
            tqdm(pool.map(measured, clips), f"lengths of {where}", len(clips), disable=len(clips) < PROGRESS_FROM)
        )
    bad = [entry for entry in found if isinstance(entry, str)]
    good = [entry for entry in found if not isinstance(entry, str)]
    if bad and not good:
        raise UserError(f"none of the {len(bad)} recordings of {where} can be read, the first is {bad[0]}: check them")
    if bad:
        rank_zero_warn(f"{len(bad)} file(s) of {where} left out, unreadable: {listed(bad)}")
    if others := Counter(rate for _, rate in good if rate != RATE):
        resampled = ", ".join(f"{count} at {rate} Hz" for rate, count in sorted(others.items()))
        rank_zero_info(f"{where}: {resampled} are resampled to {RATE} Hz")
    return [clip for clip, _ in good]


def leave_out(source: SpeechSource, split: str, unwanted: Callable[[Clip], bool], why: str) -> SpeechSource:
    """The source without unwanted clips, which are counted and named."""
    out: list[Clip] = [clip for clip in source.clips if unwanted(clip)]
    if out:
        names = listed([clip.name for clip in out], 3)
        rank_zero_warn(f"{len(out)} of {len(source)} clips of the {split} split left out, {why}: {names}")
    return source.kept(lambda clip: not unwanted(clip))
