"""Tables and records: every split of what is a data set, every cell as it is, and a reason for what is none."""

from __future__ import annotations

from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from d2v_lightning.support.errors import NotFoundError, UserError
from datamodules.shared.tables import cell_text, cells_of, json_record, open_table


def test_a_record_is_an_object_of_json() -> None:
    assert json_record('{"a": 1, "b": null}') == {"a": 1, "b": None}
    for line, reason in (("[1]", "not a JSON object but list"), ("{", "not JSON, "), ("[" * 100_000, "not JSON, ")):
        with pytest.raises(UserError, match=reason.replace("[", r"\[")):
            json_record(line)


def test_a_cell_is_whole_text_or_has_a_reason() -> None:
    assert cell_text("caf\u00e9") == cell_text("caf\u00e9".encode()) == "caf\u00e9"
    for cell, reason in ((None, "NoneType in place of text"), (7, "int in place"), (b"caf\xe9", "not UTF-8 at byte 3")):
        with pytest.raises(UserError, match=reason):
            cell_text(cell)


def test_cells_come_in_order_and_text_that_is_not_utf8_as_bytes(tmp_path: Path) -> None:
    raw = pa.array([b"one", b"caf\xe9", None, "caf\u00e9".encode()])
    text = pa.StringArray.from_buffers(4, *raw.buffers()[1:], raw.buffers()[0])
    pq.write_table(pa.table({"text": text, "n": [1, 2, 3, 4]}), tmp_path / "a.parquet")
    table = open_table(str(tmp_path / "a.parquet"), None, streaming=False)["train"]
    assert list(cells_of(table, "text")) == ["one", b"caf\xe9", None, "caf\u00e9"]
    assert list(cells_of(table, "n")) == [1, 2, 3, 4]


def test_a_data_set_is_a_folder_or_a_file_and_what_is_none_is_said(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict({"n": [1, 2]})
    table.save_to_disk(str(tmp_path / "alone"))
    datasets.DatasetDict({"train": table, "dev": table}).save_to_disk(str(tmp_path / "two"))
    assert {name: split["n"][:] for name, split in open_table(str(tmp_path / "two"), None, False).items()} == {
        "train": [1, 2],
        "dev": [1, 2],
    }
    assert set(open_table(str(tmp_path / "alone"), None, False)) == {"train"}
    with pytest.raises(UserError, match="streaming is for parquet and the hub"):
        open_table(str(tmp_path / "two"), None, streaming=True)
    with pytest.raises(NotFoundError, match=r"gone\.parquet does not exist: `dataset` is a file, a folder or a name"):
        open_table("gone.parquet", None, False)
