"""Lines: UTF-8 that nothing but a newline ends, and a line that is wrong is named by its file and number."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from d2v_lightning.support.errors import UserError
from d2v_lightning.support.lines import good_lines, listed, numbered_lines, read_lines, whole_text


def test_nothing_but_a_newline_ends_a_line(tmp_path: Path) -> None:
    text = "\ufeffone\u2028still one\r\n\x0ctwo\x85\n\nfour"
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    lines = ["one\u2028still one", "\x0ctwo\x85", "", "four"]
    assert list(read_lines(path)) == lines
    assert list(numbered_lines(path)) == [(number, line.encode()) for number, line in enumerate(lines, start=1)]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("words".encode("utf-16"), "is UTF-16"),
        (gzip.compress(b"words", mtime=0), "compressed by gzip"),
        (b"PK\x03\x04", "zip"),
    ],
)
def test_other_kinds_of_files_are_told_apart(content: bytes, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.txt .*{kind}"):
        list(read_lines(path))
    bad: list[str] = []
    assert list(good_lines(path, bad)) == []
    assert len(bad) == 1


def test_lines_that_cannot_be_read_are_left_out_and_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"good\nb\xe4d\nzero\0byte\ngood too\n")
    bad: list[str] = []
    assert list(good_lines(path, bad)) == [(1, "good"), (4, "good too")]
    assert bad == [f"{path}:2: not UTF-8 at byte 1", f"{path}:3: a zero byte"]
    with pytest.raises(UserError, match=r"a\.txt:2: not UTF-8 at byte 1"):
        list(read_lines(path))


def test_a_name_of_a_file_may_hold_any_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"b\xe4d.wav\tWORDS\n")
    bad: list[str] = []
    ((_, line),) = good_lines(path, bad, names=True)
    assert line.encode(errors="surrogateescape") == b"b\xe4d.wav\tWORDS"
    assert not bad
    with pytest.raises(UserError, match=r"^not UTF-8 at character 1$"):
        whole_text(line)


def test_half_an_emoji_is_no_text() -> None:
    assert whole_text("a \U0001f600") == "a \U0001f600"
    with pytest.raises(UserError, match=r"^half a surrogate pair at character 2$"):
        whole_text("a \ud83d")


def test_a_list_of_what_is_bad_ends() -> None:
    assert listed(["a", "b"]) == "a; b"
    assert listed(["a", "b", "c"], most=2) == "a; b and 1 more"
    assert listed(["a", "b"], count=10) == "a; b and 8 more"
