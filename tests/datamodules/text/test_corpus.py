"""Text is read, tokenised and packed completely, in order and once; what cannot be read is named."""

from __future__ import annotations

import gzip
import json
import pickle
import shutil
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from d2v_lightning.commands.tokenizer import main
from d2v_lightning.support.errors import UserError
from datamodules.text import corpus as text_corpus
from datamodules.text.corpus import TokenCorpus, tokenized
from datamodules.text.sources import FileSource, Line, Skipped, open_tables
from datamodules.text.vocabulary import load_tokenizer, vocabulary_of


def read(source: Any) -> list[tuple[str, bool]]:
    return [(line.text, line.ends_document) for line in source.lines(Skipped())]


def corpus_of(folder: Path, text: str, bpe: str, **options: Any) -> TokenCorpus:
    (folder / "a.txt").write_text(text)
    return tokenized(FileSource(str(folder / "a.txt"), **options), load_tokenizer(bpe), 2, folder / "cache")


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


def test_a_corpus_is_the_tokens_of_every_line(tmp_path: Path, bpe: str) -> None:
    text = "the cat sat\na dog\n\nrain fell\n"
    corpus = corpus_of(tmp_path, text, bpe, documents="blank_lines")
    tokenizer = load_tokenizer(bpe)
    lines = [[*tokenizer(line, add_special_tokens=False)["input_ids"], 2] for line in text.split("\n") if line]
    assert corpus.tokens.tolist() == [token for line in lines for token in line]
    assert corpus.tokens.dtype == np.uint16
    ends = np.cumsum([len(line) for line in lines]).tolist()
    assert corpus.line_ends.tolist() == ends
    assert corpus.document_ends.tolist() == ends[1:]
    copy = pickle.loads(pickle.dumps(corpus))
    assert isinstance(copy.tokens, np.memmap)
    assert len(pickle.dumps(corpus)) < 1000


def test_portions_and_growing_files_change_nothing(tmp_path: Path, bpe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(f"the cat {number}\n" for number in range(40))
    (tmp_path / "one").mkdir()
    whole = corpus_of(tmp_path, text, bpe)
    monkeypatch.setattr(text_corpus, "CHARACTERS_AT_ONCE", 20)
    pieces = corpus_of(tmp_path / "one", text, bpe)
    for name in ("tokens", "line_ends", "document_ends"):
        assert np.array_equal(getattr(whole, name), getattr(pieces, name))


def test_the_cache_is_found_again_and_not_trusted_when_anything_changed(
    tmp_path: Path, bpe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    write = text_corpus._write

    def counted(*arguments: Any) -> None:
        made.append(arguments[3])
        write(*arguments)

    monkeypatch.setattr(text_corpus, "_write", counted)
    first = corpus_of(tmp_path, "the cat\n", bpe)
    source, tokenizer = FileSource(str(tmp_path / "a.txt")), load_tokenizer(bpe)
    tokenized(source, tokenizer, 2, tmp_path / "cache")
    assert len(made) == 1
    (first.folder / "tokens.npy").write_bytes(b"cut")
    assert tokenized(source, tokenizer, 2, tmp_path / "cache").tokens[-1] == 2
    assert len(made) == 2
    made[0].mkdir()  # what a killed process leaves
    (made[0] / "tokens.npy").write_bytes(b"half")
    corpus_of(tmp_path, "the dog\n", bpe)
    assert len(made) == 3
    tokenizer.add_tokens(["cat"])
    tokenized(FileSource(str(tmp_path / "a.txt")), tokenizer, 2, tmp_path / "cache")
    assert len(made) == 4


def test_starting_at_once_tokenises_once(tmp_path: Path, bpe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    write = text_corpus._write

    def counted(*arguments: Any) -> None:
        made.append(1)
        write(*arguments)

    monkeypatch.setattr(text_corpus, "_write", counted)
    (tmp_path / "a.txt").write_text("the cat\n" * 50)
    tokenizers = [load_tokenizer(bpe) for _ in range(4)]
    found: list[int] = []

    def open_it(tokenizer: Any) -> None:
        corpus = tokenized(FileSource(str(tmp_path / "a.txt")), tokenizer, 2, tmp_path / "cache")
        found.append(len(corpus.tokens) + len(corpus.block_ends("complete_documents", 9)))

    threads = [threading.Thread(target=open_it, args=(tokenizer,)) for tokenizer in tokenizers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert made == [1]


def test_blocks_cover_the_corpus_once_in_order(tmp_path: Path, bpe: str) -> None:
    generator = np.random.default_rng(0)
    documents = [
        "\n".join(" ".join(["cat"] * int(words)) for words in generator.integers(1, 30, size=int(lines)))
        for lines in generator.integers(1, 7, size=30)
    ]
    corpus = corpus_of(tmp_path, "\n\n".join(documents), bpe, documents="blank_lines")
    capacity, total = 15, len(corpus.tokens)
    plain = corpus.block_ends("blocks", capacity)
    assert np.diff(plain, prepend=0).tolist() == [capacity] * (total // capacity) + [total % capacity] * (
        total % capacity > 0
    )

    ends = corpus.block_ends("complete_documents", capacity).tolist()
    assert ends == corpus.block_ends("complete_documents", capacity).tolist()
    starts = [0, *ends[:-1]]
    line_ends, document_ends = corpus.line_ends.tolist(), corpus.document_ends.tolist()
    assert ends[-1] == total
    assert set(document_ends) <= set(ends), "no block holds two documents"
    for start, end in zip(starts, ends, strict=True):
        assert 0 < end - start <= capacity
        if end not in line_ends:
            assert end - start == capacity, "a line is cut only where it alone is too long"
            assert not any(start < other <= end for other in line_ends)
        elif end not in document_ends:
            following = line_ends[line_ends.index(end) + 1]
            assert following - start > capacity, "one more line would have fitted"


def test_no_text_is_an_error(tmp_path: Path, bpe: str) -> None:
    with pytest.raises(ValueError, match=r"no text in .*a.txt: all lines are empty"):
        corpus_of(tmp_path, "\n \n", bpe)
    with pytest.raises(FileNotFoundError, match=r"no file matches '.*missing.*': give text files"):
        FileSource(str(tmp_path / "missing*"))
    with pytest.raises(FileNotFoundError, match=r"it is a folder: add /\*\.txt"):
        FileSource(str(tmp_path))


def test_large_vocabularies_take_four_bytes(tmp_path: Path, bpe: str) -> None:
    tokenizer = load_tokenizer(bpe)
    before = len(tokenizer)
    tokenizer.add_tokens([f"word{number}" for number in range(65_300)])
    (tmp_path / "a.txt").write_text("word65299\n")
    corpus = tokenized(FileSource(str(tmp_path / "a.txt")), tokenizer, 2, tmp_path / "cache")
    assert corpus.tokens.tolist() == [before + 65_299, 2]
    assert corpus.tokens.dtype == np.int32


def test_the_tokenizer_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_bytes("die Katze saß\nKatzen schlafen\n".encode() * 9 + b"\xff\n")
    out = tmp_path / "made" / "bpe"
    arguments = [str(tmp_path / "a.txt"), "--out", str(out), "--vocab_size"]
    assert main([*arguments, "270"]) == 0
    assert "1 line(s) left out" in capsys.readouterr().err
    tokenizer = load_tokenizer(str(out))
    assert tokenizer.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]) == [0, 1, 2, 3, 269]
    assert tokenizer("saß Ω")["input_ids"][0] == 0
    assert tokenizer.decode(tokenizer("die Katze Ω 🙂")["input_ids"], skip_special_tokens=True) == "die Katze Ω 🙂"
    vocabulary = vocabulary_of(tokenizer)
    ids = tokenizer("die Katze", add_special_tokens=False)["input_ids"]
    assert vocabulary.word_starts[ids].sum() == 1, "the first word has no space before it"
    assert main([*arguments, "270"]) == 2
    assert "exists: remove it" in capsys.readouterr().err
    arguments[2] = str(tmp_path / "other")
    assert main([*arguments, "100"]) == 2
    assert capsys.readouterr().err == (
        "error: vocab_size 100: permitted is 261 (256 bytes, 5 special tokens) or more\n"
    )


def test_sizes_add_up_for_the_progress_bar(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo words\n")
    source = FileSource(str(tmp_path / "a.txt"))
    lines: list[Line] = list(source.lines(Skipped()))
    assert sum(line.size for line in lines) == source.size


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tokenizer.json", {"model": {"type": "Nothing"}}),
        ("tokenizer.json", {"version": None}),
        ("tokenizer_config.json", {"model_max_length": [1]}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"0": None}}),
        ("tokenizer_config.json", []),
    ],
)
def test_a_broken_tokenizer_is_refused_in_one_line(tmp_path: Path, bpe: str, name: str, change: Any) -> None:
    folder = shutil.copytree(bpe, tmp_path / "broken")
    content = {**json.loads((folder / name).read_text()), **change} if change else change
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"tokenizer '.*/broken' cannot be loaded \(.+\): give a name") as error:
        load_tokenizer(str(folder))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["Unheard", "PreTrainedTokenizerFast"])
def test_code_that_comes_with_a_tokenizer_is_neither_run_nor_asked_about(
    tmp_path: Path, bpe: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, done = shutil.copytree(bpe, tmp_path / "foreign"), tmp_path / "done"
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    foreign = {"auto_map": {"AutoTokenizer": [None, "code.Foreign"]}, "tokenizer_class": kind}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **foreign}))
    (folder / "code.py").write_text(f"open({str(done)!r}, 'w')\nclass Foreign: pass\n")
    monkeypatch.setattr("builtins.input", lambda prompt="": "y")
    with suppress(UserError):
        load_tokenizer(str(folder))
    assert not done.exists()
