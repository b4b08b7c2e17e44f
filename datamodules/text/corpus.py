"""Tokens of a whole corpus, made once and read from the disk, and their packing into blocks."""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from d2v_lightning.flavour import rank_zero_info, rank_zero_warn
from d2v_lightning.support.atomic import atomic_write, remove
from d2v_lightning.support.errors import UserError
from datamodules.text.sources import Line, Skipped, TextSource
from datamodules.text.vocabulary import all_cores, content_hash

Packing = Literal["complete_documents", "blocks"]
FORMAT = 2  # of the files of a corpus, and of what counts as a line
CHARACTERS_AT_ONCE = 1_000_000
LARGEST_UINT16 = 65_535
DESCRIPTION = "corpus.json"


class TokenCorpus:
    """A corpus as one sequence of ids, each line followed by the token that ends a text. Nothing of it is held in memory.

    Args:
        folder: made by `tokenized`.

    Attributes:
        tokens: (T,) uint16 or int32 ids.
        line_ends: (lines,) int64: where in `tokens` each line ends, its last token included.
        document_ends: (documents,) int64, likewise.
        skipped: lines that were left out.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokens, self.line_ends, self.document_ends = (
            np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("tokens", "line_ends", "document_ends")
        )
        self.skipped = Skipped(**json.loads((folder / DESCRIPTION).read_text())["skipped"])

    def __reduce__(self) -> tuple[type[TokenCorpus], tuple[Path]]:
        return TokenCorpus, (self.folder,)  # a worker process opens the files itself

    def block_ends(self, packing: Packing, capacity: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Where blocks end that follow each other without a gap.

        Args:
            packing: "complete_documents": as many whole lines of one document as fit; a longer line is cut. "blocks": every
                `capacity` tokens, whatever they are.
            capacity: tokens in the longest block.

        Returns:
            (blocks,) int64 places in `tokens`, ascending; the last is their number.
        """
        if packing == "blocks":
            total = len(self.tokens)
            return np.append(np.arange(capacity, total, capacity, dtype=np.int64), total)
        target = self.folder / f"block_ends_{capacity}.npy"
        if not target.is_file():
            with FileLock(f"{target}.lock"):
                if not target.is_file():
                    with (
                        atomic_write(target) as unfinished,
                        unfinished.open("wb") as file,
                        _Growing(file, np.dtype(np.int64)) as ends,
                    ):
                        for end in self._ends_of_lines_packed(capacity):
                            ends.append([end])
        ends_on_disk: np.ndarray[Any, np.dtype[np.int64]] = np.load(target, mmap_mode="r")
        return ends_on_disk

    def _ends_of_lines_packed(self, capacity: int) -> Iterator[int]:
        start = first_line = 0
        for document_end in map(int, self.document_ends):
            while start < document_end:
                most = min(start + capacity, document_end)
                line = bisect_right(self.line_ends, most, first_line, min(first_line + capacity, len(self.line_ends)))
                fits = line > first_line
                start = int(self.line_ends[line - 1]) if fits else most
                first_line = line
                yield start


def tokenized(source: TextSource, tokenizer: Any, last_id: int, cache_dir: Path) -> TokenCorpus:
    """The tokens of a corpus: from the cache, or made now on all cores.

    They are found again while neither text nor tokenizer has changed. Processes that ask at the same time wait for the first,
    and what a killed one leaves behind is never read.

    Args:
        source: of lines.
        tokenizer: a fast one of transformers.
        last_id: id that follows every line.
        cache_dir: folder for the tokens of all corpora.

    Raises:
        ValueError: there is no text, or the source refuses it.
    """
    key = {"format": FORMAT, "source": source.key, "tokenizer": content_hash(tokenizer), "last_id": last_id}
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    folder = cache_dir / name
    cache_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(cache_dir / f"{name}.lock"):
        if not _is_whole(folder, key):
            remove(folder)
            with atomic_write(folder) as unfinished:
                unfinished.mkdir()
                _write(source, tokenizer, last_id, unfinished, key)
    corpus = TokenCorpus(folder)
    rank_zero_info(
        f"{len(corpus.tokens):,} tokens of {len(corpus.line_ends):,} lines in {len(corpus.document_ends):,} documents, "
        f"kept in {folder}"
    )
    if corpus.skipped.count:
        rank_zero_warn(str(corpus.skipped))
    return corpus


def _is_whole(folder: Path, key: Any) -> bool:
    """Whether a folder holds what `key` asks for, with files as long as when they were written."""
    description = folder / DESCRIPTION
    if not description.is_file():
        return False
    found = json.loads(description.read_text())
    return found["key"] == key and all(
        (folder / name).is_file() and (folder / name).stat().st_size == size for name, size in found["sizes"].items()
    )


def _write(source: TextSource, tokenizer: Any, last_id: int, folder: Path, key: Any) -> None:
    skipped = Skipped()
    kind = np.dtype(np.uint16 if len(tokenizer) - 1 <= LARGEST_UINT16 else np.int32)
    paths = [folder / f"{name}.npy" for name in ("tokens", "line_ends", "document_ends")]
    bar = tqdm(total=source.size, desc="tokenising", unit="", unit_scale=True, disable=None, leave=False)
    with paths[0].open("wb") as first, paths[1].open("wb") as second, paths[2].open("wb") as third, bar, all_cores():
        with _Growing(first, kind) as tokens, _Growing(second) as line_ends, _Growing(third) as document_ends:
            for lines in _portions(source.lines(skipped)):
                encodings = tokenizer.backend_tokenizer.encode_batch_fast(
                    [line.text for line in lines], add_special_tokens=False
                )
                ids = [np.append(np.asarray(encoding.ids, dtype=kind), kind.type(last_id)) for encoding in encodings]
                ends = tokens.length + np.cumsum([len(one) for one in ids])
                tokens.append(np.concatenate(ids))
                line_ends.append(ends)
                document_ends.append(ends[[line.ends_document for line in lines]])
                bar.update(sum(line.size for line in lines))
        if not tokens.length:
            raise UserError(f"no text in {_named(source)}: all lines are empty or cannot be read")
    sizes = {path.name: path.stat().st_size for path in paths}
    description = {"key": key, "sizes": sizes, "skipped": vars(skipped)}
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1))


def _portions(lines: Iterable[Line]) -> Iterator[list[Line]]:
    """Lines in lists of about `CHARACTERS_AT_ONCE`."""
    portion: list[Line] = []
    characters = 0
    for line in lines:
        portion.append(line)
        characters += len(line.text)
        if characters >= CHARACTERS_AT_ONCE:
            yield portion
            portion, characters = [], 0
    if portion:
        yield portion


def _named(source: TextSource) -> str:
    return ", ".join(map(str, getattr(source, "paths", [getattr(source, "name", "the source")])))


class _Growing:
    """A `.npy` file of unknown length: its header leaves room for any, and gets the true one at the end."""

    def __init__(self, file: IO[bytes], kind: np.dtype[Any] | None = None) -> None:
        self.file, self.kind, self.length = file, kind or np.dtype(np.int64), 0

    def __enter__(self) -> _Growing:
        self._header()
        return self

    def append(self, values: Any) -> None:
        array = np.ascontiguousarray(values, dtype=self.kind)
        self.file.write(array.tobytes())
        self.length += len(array)

    def __exit__(self, *error: object) -> None:
        self.file.seek(0)
        self._header()
        self.file.flush()
        os.fsync(self.file.fileno())

    def _header(self) -> None:
        description = {"descr": self.kind.str, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self.file, description)  # pads for a length of up to 21 digits
