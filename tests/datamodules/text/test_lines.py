"""Lines to predict: named by file and number, in batches of like length that a stopped run does not change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.text.lines import LineBatches, LineNames
from datamodules.text.sources import FileSource, Skipped
from datamodules.text.vocabulary import load_tokenizer, vocabulary_of

LINES = ["the cat sat on the mat and slept", "rain", "a dog ran and the cat slept", "hat", "the hat"]


@pytest.fixture
def source(tmp_path: Path) -> FileSource:
    """Five lines in two files; the first has an empty one between."""
    (tmp_path / "a.txt").write_text(f"{LINES[0]}\n\n{LINES[1]}\n")
    (tmp_path / "b.txt").write_text("\n".join(LINES[2:]))
    return FileSource([str(tmp_path / name) for name in ("a.txt", "b.txt")])


def batches(source: FileSource, bpe: str, done: list[int] | None = None, max_tokens: int = 64) -> list[dict[str, Any]]:
    tokenizer, mask = load_tokenizer(bpe), np.zeros(5, bool)
    mask[done or []] = True
    names = LineNames(source, Skipped())
    return list(LineBatches(source, tokenizer, vocabulary_of(tokenizer), max_tokens, 2, mask, names))


def test_lines_are_named_by_file_and_number_and_told_apart_by_what_they_say(source: FileSource) -> None:
    names = LineNames(source, Skipped())
    assert [name.rpartition("/")[2] for name in names[:]] == ["a.txt:1", "a.txt:3", "b.txt:1", "b.txt:2", "b.txt:3"]
    assert len(names) == 5
    before = list(names.versions())
    Path(names[0].rpartition(":")[0]).write_text(f"{LINES[0]}!\n\n{LINES[1]}\n")
    after = list(LineNames(source, Skipped()).versions())
    assert [one == other for one, other in zip(before, after, strict=True)] == [False, True, True, True, True]


def test_lines_of_like_length_share_a_batch_and_carry_what_begins_and_ends_a_text(source: FileSource, bpe: str) -> None:
    tokenizer, found = load_tokenizer(bpe), batches(source, bpe)
    lengths = [len(tokenizer(line)["input_ids"]) for line in LINES]
    order = [index for batch in found for index in batch["index"].tolist()]
    assert order == sorted(range(5), key=lengths.__getitem__)
    for batch in found:
        padding = batch.get("padding_mask", np.zeros(batch["inputs"].shape, bool))
        for row, hidden, index in zip(batch["inputs"], padding, batch["index"].tolist(), strict=True):
            assert row[~hidden].tolist() == tokenizer(LINES[index])["input_ids"]


def test_what_is_done_is_left_out_of_its_batch_and_a_long_line_is_cut_and_named(source: FileSource, bpe: str) -> None:
    whole = [batch["index"].tolist() for batch in batches(source, bpe)]
    rest = [batch["index"].tolist() for batch in batches(source, bpe, done=[whole[0][0], *whole[1]])]
    assert rest == [whole[0][1:], *whole[2:]]
    cut = batches(source, bpe, max_tokens=5)
    assert all(batch["inputs"].shape[1] <= 5 for batch in cut)
    assert cut[-1]["inputs"][-1, -1] == 2, "also a line that is cut has its end"
    assert {name.rpartition("/")[2] for batch in cut for name in batch.get("cut", ())} >= {"a.txt:1", "b.txt:1"}
