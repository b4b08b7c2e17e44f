"""Rows of a task carry the place that messages call them, and what cannot be read is counted, not lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from d2v_lightning.finetune.glue_tasks import TASKS
from datamodules.text.glue_rows import folder_rows, label_of, read_rows, table_rows, text_of


def test_a_table_without_quoting(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_text('sentence\tlabel\n"half a quote\t1\n\nno label\n')
    found = read_rows(path, None)
    assert found.rows == [(f"{path}:2", {"sentence": '"half a quote', "label": "1"})]
    assert found.bad == [f"{path}:4: 1 fields, the header has 2"]
    assert read_rows(path, ("text", "class")).rows[0] == (f"{path}:1", {"text": "sentence", "class": "label"})


def test_json_lines_and_other_endings(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"sentence": "one"}\n["two"]\n')
    found = read_rows(path, None)
    assert [row for _, row in found.rows] == [{"sentence": "one"}]
    assert len(found.bad) == 1
    with pytest.raises(ValueError, match="must end in"):
        read_rows(Path(__file__), None)
    with pytest.raises(FileNotFoundError, match="no file at"):
        read_rows(tmp_path / "none.tsv", None)


def test_only_a_hidden_test_set_of_cola_has_a_header(tmp_path: Path) -> None:
    folder = tmp_path / "CoLA"
    folder.mkdir()
    (folder / "train.tsv").write_text("gj04\t1\t\tIt is.\n")
    (folder / "test.tsv").write_text("index\tsentence\n0\tIt was.\n")
    (train,), (test,) = (folder_rows(str(tmp_path), TASKS["cola"], [name]) for name in ("train", "test"))
    assert train.rows[0][1]["sentence"] == "It is."
    assert test.rows[0][1]["sentence"] == "It was."
    with pytest.raises(FileNotFoundError, match=r"CoLA has no dev as .tsv or .jsonl \(test.tsv, train.tsv\)"):
        folder_rows(str(tmp_path), TASKS["cola"], ["dev"])


def test_classes_of_a_data_set_are_named_as_in_the_files(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    columns = {"premise": ["a"], "hypothesis": ["b"], "sentence1": ["a"], "sentence2": ["b"], "label": [2]}
    DatasetDict({"validation": Dataset.from_dict(columns)}).save_to_disk(str(tmp_path / "t"))
    (found,) = table_rows(str(tmp_path / "t"), "mnli", TASKS["mnli"], ["dev"])
    row = {"sentence1": "a", "sentence2": "b", "gold_label": "contradiction"}
    assert found.rows == [(f"{tmp_path / 't'}[validation] row 0", row)]


def test_texts_and_labels_that_are_none() -> None:
    assert text_of({"sentence": "one"}, "sentence") == "one"
    with pytest.raises(ValueError, match="there is no column 'text', only sentence"):
        text_of({"sentence": "one"}, "text")
    assert label_of("b", ("a", "b")) == 1
    assert label_of("2.5", ()) == 2.5
    for given, message in (("c", "permitted are a, b"), (None, "permitted")):
        with pytest.raises(ValueError, match=message):
            label_of(given, ("a", "b"))
    for given, message in (("nan", "a finite number"), (None, "a number is needed")):
        with pytest.raises(ValueError, match=message):
            label_of(given, ())
