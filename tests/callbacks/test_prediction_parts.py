"""Parts of predictions: whole blocks come back as they were written, what is torn is cut off, and another's is left alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from d2v_lightning.callbacks.prediction_parts import (
    Part,
    contents,
    ids_of,
    joined,
    network_key,
    part_of,
    parts_of,
    read_part,
    stamp,
)
from d2v_lightning.flavour import pl

KEY, KIND = b"abc", {"rows": "lines"}


def write(path: Path, *blocks: dict[bytes, bytes]) -> int:
    """Blocks of rows by stamp; the size of the file before the last of them."""
    part, size = Part(path, KEY, KIND), 0
    for block in blocks:
        size = path.stat().st_size
        part.append(ids_of(list(block)), list(block.values()))
    part.close()
    return size


def test_rows_come_back_in_any_order(tmp_path: Path) -> None:
    write(tmp_path / "x", {b"a": b"first", b"b": b""}, {b"c": b"third, longer"})
    rows = read_part(tmp_path / "x", KEY)
    assert rows is not None
    assert rows.kind == KIND
    number = rows.of(ids_of([b"c", b"nowhere", b"a", b"b", b"c"]))
    assert number.tolist() == [2, -1, 0, 1, 2]
    wanted = rows.where[number[number >= 0]]
    assert list(contents([tmp_path / "x"], wanted)) == [b"third, longer", b"first", b"", b"third, longer"]


@pytest.mark.parametrize("harm", ["cut", "flipped", "foreign"])
def test_what_is_torn_is_cut_off_and_written_anew(harm: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    size = write(path, {b"a": b"first"}, {b"b": b"second"})
    raw = path.read_bytes()
    torn = {
        "cut": raw[:-3],
        "flipped": raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:],
        "foreign": raw[:size] + b"ELSE" + raw[size + 4 :],
    }[harm]
    path.write_bytes(torn)
    rows = read_part(path, KEY)
    assert rows is not None
    assert rows.of(ids_of([b"a", b"b"])).tolist() == [0, -1]
    assert path.stat().st_size == size
    write(path, {b"b": b"again"})
    rows = read_part(path, KEY)
    assert rows is not None
    assert list(contents([path], rows.where)) == [b"first", b"again"]


def test_a_part_of_another_network_is_left_as_it_is(tmp_path: Path) -> None:
    write(tmp_path / "x", {b"a": b"first"})
    raw = (tmp_path / "x").read_bytes()
    assert read_part(tmp_path / "x", b"abd") is None
    (tmp_path / "torn").write_bytes(KEY + b"\n{")
    assert read_part(tmp_path / "torn", KEY) is None
    assert (tmp_path / "x").read_bytes() == raw


def test_a_part_without_rows_is_empty(tmp_path: Path) -> None:
    part = Part(tmp_path / "x", KEY, KIND)
    assert part.is_empty
    part.close()
    rows = read_part(tmp_path / "x", KEY)
    assert rows is not None
    assert rows.where.shape == (0, 3)
    assert rows.of(ids_of([b"a"])).tolist() == [-1]
    part = Part(tmp_path / "x", KEY, KIND)
    part.append(ids_of([b"a"]), [b"first"])
    assert not part.is_empty
    part.close()


def test_the_first_of_several_parts_that_has_a_row_gives_it(tmp_path: Path) -> None:
    target = tmp_path / "out[1].csv"
    paths = [part_of(target, rank) for rank in (0, 1)]
    write(paths[0], {b"a": b"a of 0", b"b": b"b of 0"})
    write(paths[1], {b"b": b"b of 1", b"c": b"c of 1"})
    (tmp_path / ".out1.csv.rank0").write_text("of another output")
    assert parts_of(target) == paths
    both = joined([rows for path in paths if (rows := read_part(path, KEY)) is not None])
    where = both.where[both.of(ids_of([b"c", b"b", b"a"]))]
    assert list(contents(paths, where)) == [b"c of 1", b"b of 0", b"a of 0"]


def test_a_file_is_another_when_it_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(b"1")
    before = stamp(str(path))
    assert stamp(str(path)) == before
    os.utime(path, ns=(1, 1))
    assert stamp(str(path)) != before
    assert stamp("no file\0") == os.fsencode(os.path.abspath("no file\0"))
    ids = ids_of([before, stamp(str(path))])
    assert len(np.unique(ids)) == 2
    assert ids_of([b"a"]).tolist() == [3_405_396_810_240_292_928], "the same in every run"


def test_a_network_is_another_with_other_weights_settings_or_files(tmp_path: Path) -> None:
    class Module(pl.LightningModule):
        def __init__(self, config: Any = None, weight: float = 1.0) -> None:
            super().__init__()
            self.config, self.weight = config, torch.nn.Parameter(torch.tensor(weight))

    words = tmp_path / "words.txt"
    words.write_text("one")
    config = {"init_args": {"lexicon": [str(words)]}}
    keys = [
        network_key(Module(), {}),
        network_key(Module(weight=1.0 + 2**-23), {}),
        network_key(Module(), {"top": 2}),
        network_key(Module(config), {}),
    ]
    assert network_key(Module(), {}) == keys[0]
    assert network_key(Module(config), {}) == keys[3]
    words.write_text("one two")
    keys.append(network_key(Module(config), {}))
    assert len(set(keys)) == 5
    assert not any(b"\n" in key for key in keys)
