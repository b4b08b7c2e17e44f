"""Where text comes from: text files, JSON lines, Hugging Face data sets. Read line by line, never as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, get_args

from d2v_lightning.support.errors import NotFoundError, UserError
from d2v_lightning.support.lines import decoded, listed, numbered_lines, whole_text
from datamodules.shared.arguments import one_of
from datamodules.shared.files import expanded, files_of
from datamodules.shared.tables import SPLIT_NAMES, cell_text, cells_of, json_record, open_table

_T = TypeVar("_T")
Documents = Literal["lines", "blank_lines"]
NAMES_KEPT = 20
ENOUGH_BAD_LINES = 1000
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")


class Line(NamedTuple):
    """A line that is not empty.

    text: without the line's end.
    ends_document: no other line of its document follows.
    size: bytes read since the line before, for a progress bar.
    """

    text: str
    ends_document: bool
    size: int


@dataclass
class Skipped:
    """Lines that are left out: how many, and the first of them as "file:line: reason". As text, the warning of them."""

    count: int = 0
    names: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        self.count += 1
        if len(self.names) < NAMES_KEPT:
            self.names.append(name)

    def __str__(self) -> str:
        return f"{self.count} line(s) left out: {listed(self.names, count=self.count)}"

    def add_file(self, name: str) -> None:
        """A file that was given up is named before all lines."""
        self.count += 1
        self.names = [name, *self.names[: NAMES_KEPT - 1]]


class TextSource(Protocol):
    """Lines of text in a fixed order."""

    @property
    def key(self) -> Any:
        """Plain data that changes when the text does."""

    @property
    def size(self) -> int:
        """What the `size` of all lines adds up to, nearly."""

    def lines(self, skipped: Skipped) -> Iterator[Line]:
        """All lines from the first; those that cannot be read are noted in `skipped`."""


class FileSource:
    """Text files and JSON lines (`.jsonl`, `.ndjson`, `.json`).

    Args:
        patterns: paths, or patterns with `*`, `?` and `**`; the matches of each are read in the order of their names.
        documents: "lines": a line is a document. "blank_lines": documents are separated by empty lines. A record of JSON
            lines is always a document; lines within its text stay lines.
        text_field: of a record of JSON lines.

    Raises:
        FileNotFoundError: nothing matches.
        ValueError: `documents` is neither.
    """

    def __init__(self, patterns: str | Iterable[str], documents: Documents = "lines", text_field: str = "text") -> None:
        one_of(get_args(Documents), documents=documents)
        self.documents, self.text_field = documents, text_field
        self.paths: list[Path] = []
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            if expanded(pattern).is_dir():
                raise NotFoundError(
                    f"no file matches {pattern!r} (it is a folder: add /*.txt): give text files or .jsonl files"
                )
            found = [Path(path) for path in files_of(pattern, (), "text file")]
            self.paths += [path for path in found if path not in self.paths]

    @property
    def key(self) -> Any:
        """Paths, sizes and times of change of the files, and how they are read."""
        files = [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in self.paths]
        return {"files": files, "documents": self.documents, "text_field": self.text_field}

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.paths)

    def lines(self, skipped: Skipped) -> Iterator[Line]:
        """See `TextSource`.

        A file of which most lines are not UTF-8 text (or JSON with a `text_field`) is given up where that shows, and named.
        Its good lines before that stay.

        Raises:
            ValueError: that is so of all files.
        """

        def of_file(path: Path) -> Iterator[Line]:
            return self._records(path, skipped) if self._is_json(path) else self._plain(path, skipped)

        yield from self._of_files(of_file, skipped)

    def samples(self, skipped: Skipped) -> Iterator[tuple[str, int, str]]:
        """(path, number, text) of every line that is not empty, or record of JSON lines, its own lines joined.

        Raises:
            ValueError: see `lines`.
        """

        def of_file(path: Path) -> Iterator[tuple[str, int, str]]:
            read = self._texts if self._is_json(path) else self._decoded
            for number, text, _ in read(path, skipped):
                if joined := " ".join(line.text for line in split_lines(text, 0)):
                    yield str(path), number, joined

        yield from self._of_files(of_file, skipped)

    def _is_json(self, path: Path) -> bool:
        return path.suffix.lower() in JSON_SUFFIXES

    def _of_files(self, of_file: Callable[[Path], Iterator[_T]], skipped: Skipped) -> Iterator[_T]:
        refused: list[UserError] = []
        for path in self.paths:
            try:
                yield from of_file(path)
            except UserError as error:
                refused.append(error)
                skipped.add_file(str(error))
        if len(refused) == len(self.paths):
            raise refused[0]

    def _plain(self, path: Path, skipped: Skipped) -> Iterator[Line]:
        waiting: Line | None = None  # until it is known whether its document goes on
        for _, text, size in self._decoded(path, skipped):
            if waiting is not None:
                yield waiting._replace(ends_document=not text or self.documents == "lines")
            waiting = Line(text, True, size) if text else None
        if waiting is not None:
            yield waiting

    def _records(self, path: Path, skipped: Skipped) -> Iterator[Line]:
        for _, text, size in self._texts(path, skipped):
            yield from split_lines(text, size)

    def _texts(self, path: Path, skipped: Skipped) -> Iterator[tuple[int, str, int]]:
        """(number, text, bytes) of every record that can be read."""
        count = _Count(path, skipped, "JSON lines with text", f"a record a line, its text in {self.text_field!r}")
        for number, line, size in self._decoded(path, skipped):
            if not line:
                continue
            try:
                text = _text_of(line, self.text_field)
            except UserError as error:
                count.bad(number, str(error))
                continue
            count.good += 1
            yield number, text, size
        count.close()

    def _decoded(self, path: Path, skipped: Skipped) -> Iterator[tuple[int, str, int]]:
        """(number, line without its end and outer spaces, bytes) of every line that can be read."""
        count = _Count(path, skipped, "UTF-8 text", "convert it, as by iconv -f ENCODING -t UTF-8")
        for number, line in numbered_lines(path):
            try:
                text = decoded(line).strip()
            except UserError as error:
                count.bad(number, str(error))
                continue
            count.good += bool(text)
            yield number, text, len(line) + 1
        count.close()


class _Count:
    """Good and bad lines of one file, which is given up when most are bad.

    Args:
        path: of the file.
        skipped: takes note of bad lines.
        kind: what the file should be.
        remedy: what to do if it is not.
    """

    def __init__(self, path: Path, skipped: Skipped, kind: str, remedy: str) -> None:
        self.path, self.skipped, self.kind, self.remedy = path, skipped, kind, remedy
        self.good = self._bad = 0
        self._first = ""

    def bad(self, number: int, reason: str) -> None:
        """Note a bad line.

        Raises:
            ValueError: there are many, and more than good ones.
        """
        self._bad += 1
        self._first = self._first or f"line {number}: {reason}"
        self.skipped.add(f"{self.path}:{number}: {reason}")
        if self._bad > max(self.good, ENOUGH_BAD_LINES):
            self.close()

    def close(self) -> None:
        """Raises ValueError where more lines are bad than good."""
        if self._bad > self.good:
            raise UserError(
                f"{self.path} is not {self.kind}, {self._bad} of its first {self.good + self._bad} lines cannot be read "
                f"({self._first}): {self.remedy}"
            )


def _text_of(line: str, text_field: str) -> str:
    """The text of a record of JSON lines.

    Raises:
        ValueError: there is none, or it is not whole.
    """
    record = json_record(line)
    text = record.get(text_field)
    if not isinstance(text, str):
        there = ", ".join(name[:40] for name in list(record)[:12])
        raise UserError(
            f"{type(text).__name__} in place of text in {text_field!r}"
            if text_field in record
            else f"no text in {text_field!r} ({there}), set text_field"
        )
    return whole_text(text)


class TableSource:
    """A column of text of a Hugging Face data set; a row is a document.

    Args:
        table: a `datasets.Dataset`.
        name: of data set and split, for messages.
        text_field: the column.

    Raises:
        ValueError: there is no such column.
    """

    def __init__(self, table: Any, name: str, text_field: str) -> None:
        if text_field not in table.column_names:
            raise UserError(
                f"{name} has no column {text_field!r}: set text_field to one of {', '.join(table.column_names)}"
            )
        self._table = table.select_columns([text_field])
        self.text_field, self.name = text_field, name

    @property
    def key(self) -> Any:
        """The table's own fingerprint."""
        return {"dataset": self.name, "fingerprint": self._table._fingerprint, "text_field": self.text_field}

    @property
    def size(self) -> int:
        """Rows."""
        return len(self._table)

    def lines(self, skipped: Skipped) -> Iterator[Line]:
        """See `TextSource`."""
        for row, cell in enumerate(cells_of(self._table, self.text_field)):
            try:
                yield from split_lines(cell_text(cell), 1)
            except UserError as error:
                skipped.add(f"{self.name}:{row}: {error}")


def split_lines(text: str, size: int) -> Iterator[Line]:
    """The lines of one document that are not empty."""
    lines = [line for part in text.split("\n") if (line := part.strip())]
    for number, line in enumerate(lines):
        last = number == len(lines) - 1
        yield Line(line, last, size if last else 0)


def open_tables(dataset: str, config: str | None, text_field: str) -> dict[str, TableSource]:
    """The splits of a Hugging Face data set, "train" and where there is one "val".

    Args:
        dataset: a name on the hub, a folder made by `save_to_disk`, or parquet (a file, or a folder of them).
        config: its configuration, for names on the hub.
        text_field: the column of text.

    Raises:
        FileNotFoundError: there is no such data set, or it has no training split.
        ValueError: there is no such column.
    """
    tables = open_table(dataset, config, streaming=False)
    sources: dict[str, TableSource] = {}
    for split in ("train", "val"):
        found = next((name for name in SPLIT_NAMES[split] if name in tables), None)
        if found is not None:
            sources[split] = TableSource(tables[found], f"{dataset}[{found}]", text_field)
    if "train" not in sources:
        raise NotFoundError(f"{dataset} has no train split, it has {', '.join(tables)}")
    return sources
