"""What a run has predicted so far, on the disk: rows by the name and version of what they are about.

A part is a header and blocks, one a batch. The header's first line is the run's key, the second says as JSON what kind of
rows follow. A block is `_BLOCK`, the ids of its rows and their sizes (uint64 each), the rows, and zeros up to 8 bytes.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from d2v_lightning.flavour import pl

Ids = NDArray[np.uint64]

_BLOCK = struct.Struct("<4sIQQ")  # b"ROWS", CRC of all that follows, rows, bytes of the rows
_ROWS_AT_ONCE = 4096


def part_of(target: Path, rank: int) -> Path:
    """What a rank writes beside the output."""
    return target.with_name(f".{target.name}.rank{rank}")


def parts_of(target: Path) -> list[Path]:
    """Those of any number of ranks."""
    return sorted(target.parent.glob(f".{glob.escape(target.name)}.rank*"))


def network_key(module: pl.LightningModule, settings: Any) -> bytes:
    """Which network it is, with its weights, its decoder and the files that it names, and how it is asked.

    Args:
        module: that predicts.
        settings: plain data that the predictions depend on beside the network and its inputs.
    """
    trees = [getattr(module, "config", None), getattr(getattr(module, "decoder", None), "config", None), settings]
    digest = hashlib.sha256(json.dumps(trees, sort_keys=True).encode())
    for file in filter(os.path.isfile, _strings(trees)):
        digest.update(stamp(file))
    for name, tensor in module.state_dict().items():
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(name.encode() + values.tobytes())
    return digest.hexdigest().encode()


def _strings(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    for value in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _strings(value)


def stamp(path: str) -> bytes:
    """Which file it is, and which version of it; for what is no file, its name."""
    try:
        status = os.stat(path)
        version = f" {status.st_size} {status.st_mtime_ns}"
    except (OSError, ValueError):
        version = ""
    return os.fsencode(os.path.abspath(path)) + version.encode()


def ids_of(stamps: Iterator[bytes] | Sequence[bytes]) -> Ids:
    """A number for each stamp (n,), the same in every run."""
    digests = (hashlib.blake2b(one, digest_size=8).digest() for one in stamps)
    return np.frombuffer(b"".join(digests), np.uint64)


class Part:
    """A part that is open for writing.

    Args:
        path: of the file; a block that is torn, and all after it, has been cut off by `read_part`.
        key: see `network_key`; empty for a run that cannot be gone on with.
        kind: of the rows.
    """

    def __init__(self, path: Path, key: bytes, kind: dict[str, Any]) -> None:
        self.path = path
        header = key + b"\n" + json.dumps(kind).encode()
        header = header.ljust(-(len(header) + 1) % 8 + len(header)) + b"\n"
        self._header = len(header)
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115  # open until the last batch
        self._end = self._file.tell()
        if not self._end:
            try:
                self._write(header)
            except OSError:
                self._file.close()
                path.unlink()
                raise

    @property
    def is_empty(self) -> bool:
        """Whether it has no rows."""
        return self._end <= self._header

    def _write(self, content: bytes) -> None:
        """Add it as a whole, or not at all where it does not fit."""
        left = memoryview(content)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            self._file.truncate(self._end)
            error.filename = str(self.path)  # a full disk does not say where
            raise
        self._end += len(content)

    def append(self, ids: Ids, rows: Sequence[bytes]) -> None:
        """Add the rows of one batch, as a whole or, where the run is killed meanwhile, not at all."""
        sizes = np.array([len(row) for row in rows], np.uint64)
        size = int(sizes.sum())
        content = b"".join([ids.astype(np.uint64).tobytes(), sizes.tobytes(), *rows, bytes(-size % 8)])
        self._write(_BLOCK.pack(b"ROWS", zlib.crc32(content), len(rows), size) + content)

    def close(self) -> None:
        """Nothing is lost without it; but the system may say now that a block did not fit on the disk."""
        self._file.close()


class Rows(NamedTuple):
    """Rows of one or more parts: their `kind`, `ids` (r,), and `where` (r, 3): number of the part, first byte, bytes."""

    kind: dict[str, Any]
    ids: Ids
    where: NDArray[np.int64]

    def of(self, ids: Ids) -> NDArray[np.int64]:
        """Number of the row of each id (n,), the first where there are several; -1 where there is none."""
        known, first = np.unique(self.ids, return_index=True)
        if not len(known):
            return np.full(len(ids), -1)
        place = np.searchsorted(known, ids).clip(max=len(known) - 1)
        return np.where(known[place] == ids, first[place], -1)


def read_part(path: Path, key: bytes) -> Rows | None:
    """What is in a part up to the first block that is torn, from which on the file is cut off; None where it is another's."""
    with open(path, "rb+") as file:
        own, kind = file.readline().strip(), file.readline()
        if own != key or not kind.endswith(b"\n"):
            return None
        found, end = [], file.tell()
        while len(head := file.read(_BLOCK.size)) == _BLOCK.size:
            magic, checksum, count, size = _BLOCK.unpack(head)
            length = 16 * count + size + -size % 8
            if magic != b"ROWS" or length > os.path.getsize(path) - file.tell():
                break
            content = file.read(length)
            if zlib.crc32(content) != checksum:
                break
            ids, sizes = np.frombuffer(content, np.uint64, 2 * count).reshape(2, count)
            first = end + _BLOCK.size + 16 * count + np.cumsum(sizes, dtype=np.int64) - sizes.astype(np.int64)
            found.append((ids, first, sizes.astype(np.int64)))
            end = file.tell()
        file.truncate(end)
    columns = [np.concatenate(column) for column in zip(*found, strict=True)] if found else [np.zeros(0, np.uint64)] * 3
    where = np.stack(
        [np.zeros(len(columns[0]), np.int64), *(column.astype(np.int64) for column in columns[1:])], axis=1
    )
    return Rows(json.loads(kind), columns[0], where)


def joined(parts: Sequence[Rows]) -> Rows:
    """The rows of several parts."""
    for number, part in enumerate(parts):
        part.where[:, 0] = number
    return Rows(
        parts[0].kind, np.concatenate([part.ids for part in parts]), np.concatenate([part.where for part in parts])
    )


def contents(paths: Sequence[Path], where: NDArray[np.int64]) -> Iterator[bytes]:
    """Rows in the order of `where` (n, 3), read one by one, so that they need not fit into memory."""
    files = [open(path, "rb") for path in paths]  # noqa: SIM115  # closed below
    try:
        for start in range(0, len(where), _ROWS_AT_ONCE):
            for number, first, size in where[start : start + _ROWS_AT_ONCE].tolist():
                files[number].seek(first)
                yield files[number].read(size)
    finally:
        for file in files:
            file.close()
