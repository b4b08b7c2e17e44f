"""Files of predictions: every kind can be read by the usual tools, and there is a whole file or none."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from d2v_lightning.callbacks import prediction_files
from d2v_lightning.callbacks.prediction_files import Row, write_rows, written_name


def given(*rows: Row) -> Callable[[], Iterator[Row]]:
    return lambda: iter(rows)


def numbers(*shape: int, first: float = 0.0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return (first + np.arange(np.prod(shape))).astype(np.float32).reshape(shape)


def test_lines_are_json_with_the_name_of_the_file(tmp_path: Path) -> None:
    rows = given((0, "\u00e4.wav", b'{"words": "A"}'), (2, "b.wav", '{"words": "\u00dc"}'.encode()))
    write_rows(tmp_path / "x.jsonl", {"rows": "lines"}, rows)
    text = (tmp_path / "x.jsonl").read_text(encoding="utf-8")
    assert text == '{"file": "\u00e4.wav", "words": "A"}\n{"file": "b.wav", "words": "\u00dc"}\n'


def read_csv(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize(
    ("names", "called"), [(["cat", "a dog, or\nmore"], ["a dog, or\nmore", "cat"]), (None, ["1", "0"])]
)
def test_labels_are_rows_of_names_and_probabilities(
    names: Sequence[str] | None, called: list[str], tmp_path: Path
) -> None:
    row = json.dumps([[1, 0.75], [0, 0.25]]).encode()
    write_rows(tmp_path / "x.csv", {"rows": "labels", "top": 2}, given((3, "a,b.png", row)), names)
    assert read_csv(tmp_path / "x.csv") == [
        ["index", "path", "label", "probability", "label_2", "probability_2"],
        ["3", "a,b.png", called[0], "0.750000", called[1], "0.250000"],
    ]


def test_values_have_six_places(tmp_path: Path) -> None:
    write_rows(tmp_path / "x.csv", {"rows": "values"}, given((0, "", b"2.5"), (1, "", b"-0.1234567")))
    assert read_csv(tmp_path / "x.csv")[1:] == [["0", "", "2.500000"], ["1", "", "-0.123457"]]


def test_an_array_has_a_table_of_names_beside_it(tmp_path: Path) -> None:
    one, two = numbers(2, 3), numbers(2, 3, first=10)
    rows = given((5, "a", one.tobytes()), (7, "b", two.tobytes()))
    write_rows(tmp_path / "x.npy", {"rows": "features", "shape": (2, 3), "layers": [0, 1]}, rows)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy", mmap_mode="r"), np.stack([one, two]))
    assert read_csv(tmp_path / "x.csv") == [["row", "path"], ["0", "a"], ["1", "b"]]


def test_tensors_have_lengths_of_their_own_and_a_name_has_its_first(tmp_path: Path) -> None:
    short, long = numbers(2, 1, 3), numbers(2, 4, 3)
    rows = given((0, "a", short.tobytes()), (1, "", long.tobytes()), (2, "a", long.tobytes()))
    write_rows(tmp_path / "x.safetensors", {"rows": "features", "shape": (2, -1, 3), "layers": [0, 1]}, rows)
    found = load_file(tmp_path / "x.safetensors")
    assert sorted(found) == ["1", "a"]
    np.testing.assert_array_equal(found["a"], short)
    np.testing.assert_array_equal(found["1"], long)


@pytest.mark.parametrize("at_once", [1, 1 << 22])
def test_parquet_has_a_row_for_each_layer(at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_files, "_VALUES_AT_ONCE", at_once)
    short, long = numbers(2, 1, 3), numbers(2, 2, 3, first=50)
    rows = given((0, "a", short.tobytes()), (1, "b", long.tobytes()))
    write_rows(tmp_path / "x.parquet", {"rows": "features", "shape": (2, -1, 3), "layers": [4, 11]}, rows)
    table = pq.read_table(tmp_path / "x.parquet").to_pydict()
    assert (table["name"], table["layer"]) == (["a", "a", "b", "b"], [4, 11, 4, 11])
    assert table["features"] == [*short.tolist(), *long.tolist()]
    write_rows(
        tmp_path / "y.parquet",
        {"rows": "features", "shape": (3,), "layers": [11]},
        given((0, "a", numbers(3).tobytes())),
    )
    assert pq.read_table(tmp_path / "y.parquet").to_pydict()["features"] == [[0.0, 1.0, 2.0]]


@pytest.mark.parametrize("name", ["x.npy", "x.csv", "x.jsonl"])
def test_a_row_that_fails_leaves_the_old_files(name: str, tmp_path: Path) -> None:
    def rows() -> Iterator[Row]:
        yield 0, "a", b"1.0"
        raise KeyError

    for old in ("x.npy", "x.csv", "x.jsonl"):
        (tmp_path / old).write_text("old")
    kind = {"x.npy": {"rows": "features", "shape": (1,)}, "x.csv": {"rows": "values"}, "x.jsonl": {"rows": "values"}}
    with pytest.raises(KeyError):
        write_rows(tmp_path / name, kind[name], rows)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(kind, "old")


def test_any_name_can_be_written_and_told_apart() -> None:
    odd = os.fsdecode(b"b\xe4d.png")
    assert written_name(odd) == r"b\xe4d.png"
    assert written_name(r"b\xe4d.png") == r"b\\xe4d.png"
    assert written_name("b\u00e4d.png") == "b\u00e4d.png"
