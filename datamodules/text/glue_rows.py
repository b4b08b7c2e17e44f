"""Rows of GLUE's tasks, from its own files, from files of one's own, or from tables of `datasets`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from d2v_lightning.finetune.glue_tasks import Stored
from d2v_lightning.support.errors import NotFoundError, UserError
from d2v_lightning.support.lines import decoded, numbered_lines
from datamodules.shared.files import expanded
from datamodules.shared.tables import cell_text, cells_of, json_record, open_table

Row = dict[str, Any]
# MNLI has two development and two test sets.
SPLITS = {
    "train": ("train",),
    "val": ("dev", "dev_matched", "dev_mismatched"),
    "test": ("test", "test_matched", "test_mismatched"),
}


class Rows(NamedTuple):
    """Rows of one file or table.

    name: of it.
    rows: each with the place that messages call it.
    bad: "place: reason" of lines that cannot be read.
    """

    name: str
    rows: list[tuple[str, Row]]
    bad: list[str]


def split_files(root: str, stored: Stored, names: Sequence[str]) -> list[Path]:
    """The files below `root` that have one of these names, see `folder_rows`.

    Raises:
        FileNotFoundError: there is none of them.
    """
    folder = expanded(root) / stored.folder
    found = [path for name in names for end in (".tsv", ".jsonl") if (path := folder / f"{name}{end}").is_file()]
    if not found:
        there = ", ".join(sorted(path.name for path in folder.glob("*"))) if folder.is_dir() else "no such folder"
        raise NotFoundError(f"{folder} has no {' or '.join(names)} as .tsv or .jsonl ({there})")
    return found


def folder_rows(root: str, stored: Stored, names: Sequence[str]) -> list[Rows]:
    """Rows of the files below `root` that have one of these names.

    Args:
        root: GLUE's folder, or that of files of one's own.
        stored: how the task is stored.
        names: of the files, without their endings.

    Raises:
        FileNotFoundError: there is none of them.
        ValueError: see `read_rows`.
    """
    found = split_files(root, stored, names)
    header = stored.header if "test" not in found[0].name else None
    return [read_rows(path, header) for path in found]


def read_rows(path: Path, header: Sequence[str] | None) -> Rows:
    """Rows of a `.tsv` (without quoting, as GLUE's) or `.jsonl` file.

    Args:
        header: names of the columns, for files whose first line is a row.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has another ending, is not text, or its header cannot be read.
    """
    if not path.is_file():
        raise NotFoundError(f"no file at {path}")
    if path.suffix not in (".tsv", ".jsonl"):
        raise UserError(f"{path} must end in .tsv (with a header) or .jsonl")
    names = list(header) if header is not None else None
    found = Rows(str(path), [], [])
    for number, line in numbered_lines(path):
        place = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            text = decoded(line)
            if path.suffix == ".jsonl":
                found.rows.append((place, json_record(text)))
            elif names is None:
                names = text.split("\t")
            else:
                found.rows.append((place, dict(zip(names, _as_many(text.split("\t"), len(names)), strict=True))))
        except UserError as error:
            if path.suffix == ".tsv" and names is None:
                raise UserError(f"{place}: {error}") from error
            found.bad.append(f"{place}: {error}")
    return found


def table_rows(dataset: str, task: str, stored: Stored, names: Sequence[str]) -> list[Rows]:
    """Rows of the splits of a data set that have one of these names, "validation" for "dev".

    Args:
        dataset: see `open_table`.
        task: its configuration.
        stored: how the task is stored.
        names: of the splits.

    Raises:
        FileNotFoundError: it has none of them.
    """
    tables = open_table(dataset, task, streaming=False)
    wanted = [name for name in (*names, *(name.replace("dev", "validation") for name in names)) if name in tables]
    if not wanted:
        raise NotFoundError(f"{dataset} ({task}) has none of {', '.join(names)}: it has {', '.join(tables)}")
    found = []
    for name in wanted:
        texts = [column for column in (*stored.texts, "sentence1", "sentence2") if column in tables[name].features]
        columns = dict(zip(stored.texts, texts, strict=False))
        table = f"{dataset}[{name}]"
        read = {*columns.values(), *({stored.label, "label"} & set(tables[name].features))}
        cells = zip(*(cells_of(tables[name], column) for column in read), strict=True)
        rows = [dict(zip(read, row, strict=True)) for row in cells]
        places = [(f"{table} row {n}", _table_row(row, columns, stored)) for n, row in enumerate(rows)]
        found.append(Rows(table, places, []))
    return found


def _table_row(row: dict[str, Any], columns: dict[str, str], stored: Stored) -> Row:
    """A row of a table under the names of GLUE's files; classes there are numbers in the order of ours."""
    made = {ours: row[theirs] for ours, theirs in columns.items()}
    label = row.get(stored.label, row.get("label", -1))
    if label not in (-1, None):
        number = isinstance(label, int) and len(stored.classes) > label >= 0
        made[stored.label] = stored.classes[label] if number else str(label)
    return made


def text_of(row: Row, column: str) -> str:
    """One text of a row.

    Raises:
        ValueError: it is missing, no text, or not whole.
    """
    if column not in row:
        raise UserError(f"there is no column {column!r}, only {', '.join(name[:40] for name in row)}")
    return cell_text(row[column])


def _as_many(fields: list[str], number: int) -> list[str]:
    if len(fields) != number:
        raise UserError(f"{len(fields)} fields, the header has {number}")
    return fields


def label_of(given: Any, classes: Sequence[str]) -> int | float:
    """The number of a class; or the number that a label is, where there are no classes.

    Raises:
        ValueError: it is none of the classes, or no finite number.
    """
    if classes:
        if str(given) not in classes:
            raise UserError(f"label {given!r}, permitted are {', '.join(classes)}")
        return classes.index(str(given))
    try:
        number = float("" if given is None else given)
    except (TypeError, ValueError) as error:
        raise UserError(f"label {given!r}, a number is needed") from error
    if not math.isfinite(number):
        raise UserError(f"label {given!r}, a finite number is needed")
    return number
