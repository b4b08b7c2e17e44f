"""A corpus is the tokens of every line, made once, found again while nothing changed, and packed completely in order."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.text import corpus as text_corpus
from datamodules.text.corpus import TokenCorpus, tokenized
from datamodules.text.sources import FileSource
from datamodules.text.vocabulary import load_tokenizer


def corpus_of(folder: Path, text: str, bpe: str, **options: Any) -> TokenCorpus:
    (folder / "a.txt").write_text(text)
    return tokenized(FileSource(str(folder / "a.txt"), **options), load_tokenizer(bpe), 2, folder / "cache")


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
