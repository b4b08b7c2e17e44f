"""The files that predictions end in: CSV, JSON lines, NumPy, safetensors and parquet. Rows are written as they are read."""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2v_lightning.support.atomic import atomic_write

FEATURES = (".npy", ".safetensors", ".parquet")
SUFFIXES = {"lines": (".jsonl",), "labels": (".csv",), "values": (".csv",), "features": FEATURES}
"""What each kind of rows can be written to; the first is the default."""
_VALUES_AT_ONCE = 1 << 22  # of parquet

Row = tuple[int, str, bytes]
"""Place of the sample in its data set, its name, and what was predicted for it: JSON, or float32 numbers."""


def written_name(name: str) -> str:
    r"""A name for any file: a byte that is not UTF-8, as `os.fsdecode` keeps it, becomes ``\xNN``, and a backslash two."""
    escaped = name.replace("\\", "\\\\") if os.sep == "/" else name
    return re.sub("[\udc80-\udcff]", lambda match: f"\\x{ord(match[0]) - 0xDC00:02x}", escaped)


def write_rows(
    target: Path, kind: dict[str, Any], rows: Callable[[], Iterator[Row]], names: Sequence[str] | None = None
) -> None:
    """Write predictions as a whole or not at all.

    Args:
        target: its ending is one of `SUFFIXES`.
        kind: "rows" is a key of `SUFFIXES`; labels have "top", the number of labels in each row; features "shape", which is
            (D,), (L, D) or, with one vector a token, (L, -1, D), and "layers", the numbers of the L blocks.
        rows: gives them in order, each time from the first; their names are safe to write, see `written_name`.
        names: of the classes.
    """
    with atomic_write(target) as unfinished:
        if kind["rows"] == "lines":
            with open(unfinished, "w", encoding="utf-8") as file:
                for _, name, row in rows():
                    file.write(json.dumps({"file": name, **json.loads(row)}, ensure_ascii=False) + "\n")
        elif kind["rows"] == "labels":
            header = ["index", "path", "label", "probability"]
            header += [f"{column}_{place}" for place in range(2, kind["top"] + 1) for column in header[2:4]]
            _write_csv(unfinished, header, (_labels(*row, names) for row in rows()))
        elif kind["rows"] == "values":
            header = ["index", "path", "value"]
            _write_csv(unfinished, header, ([place, name, f"{json.loads(row):.6f}"] for place, name, row in rows()))
        elif target.suffix == ".npy":
            with atomic_write(target.with_suffix(".csv")) as beside:
                _write_csv(beside, ["row", "path"], ([row, name] for row, (_, name, _) in enumerate(rows())))
                _write_npy(unfinished, rows, kind["shape"])
        elif target.suffix == ".safetensors":
            _write_safetensors(unfinished, rows, kind["shape"])
        else:
            _write_parquet(unfinished, rows(), kind["shape"], kind["layers"])


def _write_csv(path: Path, header: Sequence[str], lines: Iterable[list[Any]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(lines)


def _labels(place: int, name: str, row: bytes, names: Sequence[str] | None) -> list[Any]:
    line: list[Any] = [place, name]
    for label, probability in json.loads(row):
        line += [written_name(names[label]) if names else label, f"{probability:.6f}"]
    return line


def _array(row: bytes, shape: Sequence[int]) -> NDArray[np.float32]:
    return np.frombuffer(row, np.float32).reshape(shape)


def _write_npy(path: Path, rows: Callable[[], Iterator[Row]], shape: Sequence[int]) -> None:
    # Not by a map of the file into memory, which a full disk would end with SIGBUS.
    count = sum(1 for _ in rows())
    with open(path, "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (count, *shape)}
        np.lib.format.write_array_header_1_0(file, header)
        for _, _, row in rows():
            file.write(row)


def _write_safetensors(path: Path, rows: Callable[[], Iterator[Row]], shape: Sequence[int]) -> None:
    """A tensor for each name. The library's writer wants all of them in memory; the format is a header and the bytes."""

    def named() -> Iterator[tuple[str, bytes]]:
        """Each name once; a sample without one is called by its place."""
        seen: set[str] = set()
        for place, name, row in rows():
            name = name or str(place)
            if name not in seen:
                seen.add(name)
                yield name, row

    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, row in named():
        start, end = end, end + len(row)
        header[name] = {"dtype": "F32", "shape": _array(row, shape).shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, row in named():
            file.write(row)


def _write_parquet(path: Path, rows: Iterator[Row], shape: Sequence[int], layers: Sequence[int]) -> None:
    """Rows of name, layer and features: a list, or a list of lists, one for each token."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    width, tokens = shape[-1], len(shape) == 3
    vector = pa.list_(pa.float32())
    schema = pa.schema(
        [("name", pa.string()), ("layer", pa.int32()), ("features", pa.list_(vector) if tokens else vector)]
    )
    with pq.ParquetWriter(path, schema) as writer:
        for some in _portions(rows):
            values = np.concatenate([np.frombuffer(row, np.float32) for _, _, row in some])
            features = pa.ListArray.from_arrays(_ends([width] * (len(values) // width)), pa.array(values))
            if tokens:
                counts = [len(row) // (4 * width * len(layers)) for _, _, row in some for _ in layers]
                features = pa.ListArray.from_arrays(_ends(counts), features)
            columns = [[name for _, name, _ in some for _ in layers], list(layers) * len(some), features]
            writer.write_table(pa.table(columns, schema=schema))


def _portions(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """Rows in lists of about `_VALUES_AT_ONCE` numbers."""
    for first in rows:
        some, room = [first], 4 * _VALUES_AT_ONCE - len(first[2])
        while room > 0 and (following := next(rows, None)) is not None:
            some.append(following)
            room -= len(following[2])
        yield some


def _ends(counts: Sequence[int]) -> Any:
    return np.array([0, *itertools.accumulate(counts)], np.int32)
