"""Parts of predictions, and whether their lines are of this network and these recordings."""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule


def part_of(target: Path, rank: int) -> Path:
    """What a rank writes beside the output."""
    return target.with_name(f".{target.name}.rank{rank}")


def parts_of(target: Path) -> list[Path]:
    """Those of any number of ranks."""
    return sorted(target.parent.glob(f".{glob.escape(target.name)}.rank*"))


def network_key(module: LightningModule) -> bytes:
    """First line of a part: which network it is, with its weights, its decoder and the files that it names."""
    trees = [getattr(module, "config", None), getattr(getattr(module, "decoder", None), "config", None)]
    digest = hashlib.sha256(json.dumps(trees).encode())
    for file in filter(os.path.isfile, _strings(trees)):
        digest.update(stamp(file).encode())
    for name, tensor in module.state_dict().items():
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(name.encode() + values.tobytes())
    return digest.hexdigest().encode() + b"\n"


def _strings(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    for value in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _strings(value)


def stamp(path: str) -> str:
    """Which file it is, and which version of it."""
    status = os.stat(path) if os.path.isfile(path) else None
    return f"{os.path.abspath(path)} {status and (status.st_size, status.st_mtime_ns)}"


def read_lines(part: Path, key: bytes) -> list[tuple[Any, dict[str, Any]]] | None:
    """Rows of a part up to the first that is torn, from which on the file is cut off; None where it is of another run."""
    with open(part, "rb+") as file:
        if file.read(len(key)) != key:
            return None
        rows, end = [], file.tell()
        for text in file:
            try:
                row = json.loads(text) if text.endswith(b"\n") else None
            except ValueError:
                row = None
            if not isinstance(row, list) or [type(value) for value in row][1:] != [dict]:
                break
            rows.append((row[0], row[1]))
            end += len(text)
        file.truncate(end)
    return rows
