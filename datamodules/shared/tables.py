"""Tables of the datasets library, and records of JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from d2v_lightning.support.errors import NotFoundError, UserError
from d2v_lightning.support.lines import decoded, whole_text
from datamodules.shared.files import expanded

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "dev"),
    "test": ("test", "testing"),
}


def open_table(dataset: str, config: str | None, streaming: bool) -> Any:
    """All splits of a Hugging Face data set, by name.

    Args:
        dataset: a folder made by `save_to_disk`, a parquet file, a folder of parquet files, or a name on the hub.
        config: its configuration ("subset"), for names on the hub.
        streaming: read while training, not before.

    Returns:
        A mapping from split names to `datasets.Dataset` or `datasets.IterableDataset`.

    Raises:
        FileNotFoundError: it looks like a path and is not there.
        ValueError: a folder made by `save_to_disk` is to be streamed, or it is no data set that `datasets` can read.
    """
    import datasets

    try:
        return _opened(datasets, dataset, config, streaming)
    except UserError:
        raise
    except (ValueError, FileNotFoundError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{dataset} is no data set that can be read: {reason[:300]}") from error


def _opened(datasets: Any, dataset: str, config: str | None, streaming: bool) -> Any:
    path = expanded(dataset)
    dataset = str(path) if dataset.startswith("~") else dataset
    if path.is_file():
        return datasets.load_dataset("parquet", data_files={"train": str(path)}, streaming=streaming)
    if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
        if streaming:
            raise UserError(
                f"{dataset} is read from the disk as needed: streaming is for parquet and the hub, leave it out"
            )
        saved = datasets.load_from_disk(dataset)
        return saved if isinstance(saved, Mapping) else {"train": saved}
    if path.is_dir():
        return datasets.load_dataset(dataset, streaming=streaming)
    if dataset.startswith((".", "/")) or path.suffix == ".parquet":
        raise NotFoundError(f"{dataset} does not exist: `dataset` is a file, a folder or a name on the hub")
    return datasets.load_dataset(dataset, config, streaming=streaming)


ROWS_AT_ONCE = 1000


def json_record(line: str) -> dict[str, Any]:
    """The object in a line of JSON lines.

    Raises:
        ValueError: it is none.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON, {getattr(error, 'msg', error)}") from error
    if not isinstance(record, dict):
        raise UserError(f"not a JSON object but {type(record).__name__}")
    return record


def cells_of(table: Any, column: str) -> Iterator[Any]:
    """The cells of a column of a `datasets.Dataset`; text that is not UTF-8 as bytes."""
    import pyarrow as pa

    for rows in table.select_columns([column]).with_format("arrow").iter(ROWS_AT_ONCE):
        cells = rows[column]
        try:
            yield from cells.to_pylist()
        except UnicodeDecodeError:
            for cell in cells.cast(pa.large_binary()).to_pylist():
                try:
                    yield cell if cell is None else cell.decode()
                except UnicodeDecodeError:
                    yield cell


def cell_text(cell: Any) -> str:
    """The text in a cell.

    Raises:
        ValueError: it is no text, or not whole.
    """
    if isinstance(cell, bytes):
        return decoded(cell)
    if not isinstance(cell, str):
        raise UserError(f"{type(cell).__name__} in place of text")
    return whole_text(cell)
