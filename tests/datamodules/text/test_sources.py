"""Lines of text from files, JSON lines and tables: all of them, once, in order; what is no text is left out and named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from datamodules.text.corpus import tokenized
from datamodules.text.sources import FileSource, Line, Skipped, open_tables
from datamodules.text.vocabulary import load_tokenizer


def read(source: Any) -> list[tuple[str, bool]]:
    return [(line.text, line.ends_document) for line in source.lines(Skipped())]


def test_lines_and_documents_of_text_files(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbf one \r\ntwo\r\n\r\n\r\nthree")
    (tmp_path / "a.txt").write_text("zero\n\n")
    pattern = str(tmp_path / "*.txt")
    lines = FileSource(pattern)
    assert read(lines) == [("zero", True), ("one", True), ("two", True), ("three", True)]
    assert read(FileSource(pattern, "blank_lines")) == [("zero", True), ("one", False), ("two", True), ("three", True)]
    assert [path.name for path in FileSource([str(tmp_path / "b.txt"), pattern]).paths] == ["b.txt", "a.txt"]


def test_json_lines_and_tables(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    texts = ["one\ntwo", "three"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    expected = [("one", False), ("two", True), ("three", True)]
    assert read(FileSource(str(tmp_path / "a.jsonl"), text_field="body")) == expected
    with pytest.raises(
        ValueError, match=r"a.jsonl is not JSON .* \(line 1: no text in 'text' \(body\), set text_field"
    ):
        read(FileSource(str(tmp_path / "a.jsonl")))

    table = Dataset.from_dict({"body": [*texts, None]})
    DatasetDict({"train": table, "validation": table}).save_to_disk(str(tmp_path / "disk"))
    sources = open_tables(str(tmp_path / "disk"), None, "body")
    skipped = Skipped()
    assert [(line.text, line.ends_document) for line in sources["train"].lines(skipped)] == expected
    assert set(sources) == {"train", "val"}
    assert skipped.count == 1
    assert skipped.names[0].endswith("disk[train]:2: NoneType in place of text")
    with pytest.raises(ValueError, match="has no column 'text': set text_field to one of body"):
        open_tables(str(tmp_path / "disk"), None, "text")


def test_what_is_not_utf_8_is_skipped_and_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\nb\xe4d\nalso fine\nzero \0 byte\nfine again\n")
    skipped = Skipped()
    assert [line.text for line in FileSource(str(path)).lines(skipped)] == ["fine", "also fine", "fine again"]
    assert skipped.names == [f"{path}:2: not UTF-8 at byte 1", f"{path}:4: a zero byte"]
    path.write_text("some words\nand others\n" * 3, encoding="utf-16")
    with pytest.raises(ValueError, match=r"a.txt is UTF-16, not UTF-8: convert it, as by iconv"):
        read(FileSource(str(path)))
    broken = tmp_path / "a.jsonl"
    broken.write_text('{"text": "good"}\n{"text": \n')
    assert [line.text for line in FileSource(str(broken)).lines(skipped)] == ["good"]
    assert skipped.names[-1].startswith(f"{broken}:2: not JSON")
    broken.write_text('[\n{"text": "pretty"},\n]\n')
    with pytest.raises(ValueError, match="is not JSON lines"):
        read(FileSource(str(broken)))


def test_only_a_newline_ends_a_line_and_half_a_character_is_left_out(tmp_path: Path, bpe: str) -> None:
    odd = "a\u2028b\x0bc\x0cd\x1ce\x85f\rg"
    (tmp_path / "a.txt").write_bytes(f"{odd}\r\nlast".encode())
    assert read(FileSource(str(tmp_path / "a.txt"))) == [(odd, True), ("last", True)]
    path = tmp_path / "a.jsonl"
    lines = [
        json.dumps({"text": odd}, ensure_ascii=False),
        r'{"text": "nice \ud83d"}',
        r'{"text": "\ud83d\ude00"}',
        "[]",
    ]
    lines += [
        r'{"text": "zero \u0000"}',
        '{"text": null}',
        '{"text": 7}',
        '{"sentence": "x"}',
        "[" * 100_000,
        '{"text": "b"}',
    ]
    lines += [f'{{"text": "{n}"}}' for n in range(6)]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    skipped = Skipped()
    texts = [line.text for line in FileSource(str(path)).lines(skipped)]
    assert texts == [odd, "\U0001f600", "b", *map(str, range(6))]
    reasons = [name.removeprefix(f"{path}:") for name in skipped.names]
    assert [reason.partition(":")[0] for reason in reasons] == ["2", "4", "5", "6", "7", "8", "9"]
    assert reasons[0] == "2: half a surrogate pair at character 5"
    assert reasons[2:6] == [
        "5: a zero byte",
        "6: NoneType in place of text in 'text'",
        "7: int in place of text in 'text'",
        "8: no text in 'text' (sentence), set text_field",
    ]
    corpus = tokenized(FileSource(str(path)), load_tokenizer(bpe), 2, tmp_path / "cache")
    assert (len(corpus.line_ends), corpus.skipped.count) == (9, 7)


def test_cells_that_are_no_text_are_left_out(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    raw = pa.array([b"one", b"caf\xe9", b"nice \xed\xa0\xbd", None, b"zero \0", "caf\u00e9".encode()])
    pq.write_table(
        pa.table({"text": pa.StringArray.from_buffers(6, *raw.buffers()[1:], raw.buffers()[0])}), tmp_path / "a.parquet"
    )
    skipped = Skipped()
    source = open_tables(str(tmp_path / "a.parquet"), None, "text")["train"]
    assert [line.text for line in source.lines(skipped)] == ["one", "caf\u00e9"]
    assert [name.rpartition("[train]:")[2] for name in skipped.names] == [
        "1: not UTF-8 at byte 3",
        "2: not UTF-8 at byte 5",
        "3: NoneType in place of text",
        "4: a zero byte",
    ]


def test_a_file_that_is_no_text_is_left_out_among_others_and_refused_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some words\n", encoding="utf-16")
    (tmp_path / "b.txt").write_bytes(gzip.compress(b"some words\n" * 50)[:40])
    (tmp_path / "c.txt").write_bytes(b"caf\xe9\n" * 3)
    (tmp_path / "d.txt").write_text("good\n")
    (tmp_path / "e.jsonl").write_text('[\n{"text": "pretty"},\n]\n')
    skipped = Skipped()
    names = [str(tmp_path / name) for name in ("a.txt", "b.txt", "c.txt", "d.txt", "e.jsonl")]
    assert [line.text for line in FileSource(names).lines(skipped)] == ["good"]
    assert "e.jsonl is not JSON lines with text, 3 of its first 3 lines" in skipped.names[0]
    for name, reason in zip(
        names, ("is UTF-16", "is compressed by gzip", "is not UTF-8 text, 3 of its first 3"), strict=False
    ):
        assert any(reason in said for said in skipped.names)
        with pytest.raises(ValueError, match=f"{Path(name).name} {reason}"):
            read(FileSource(name))


def test_sizes_add_up_for_the_progress_bar(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo words\n")
    source = FileSource(str(tmp_path / "a.txt"))
    lines: list[Line] = list(source.lines(Skipped()))
    assert sum(line.size for line in lines) == source.size
