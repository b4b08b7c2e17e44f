"""Lines of text files, read alike everywhere: UTF-8, and nothing but a newline ends a line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from d2v_lightning.support.errors import UserError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
OTHER_KINDS = {
    b"\xff\xfe": "is UTF-16, not UTF-8: convert it, as by iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "is UTF-16, not UTF-8: convert it, as by iconv -f UTF-16 -t UTF-8",
    b"\x1f\x8b": "is compressed by gzip, not text: unpack it",
    b"BZh": "is compressed by bzip2, not text: unpack it",
    b"\xfd7zXZ": "is compressed by xz, not text: unpack it",
    b"(\xb5/\xfd": "is compressed by zstd, not text: unpack it",
    b"PK\x03\x04": "is a zip archive, not text: unpack it",
}
"""What other files begin with."""


def numbered_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    r"""(number from 1, bytes) of every line, read one by one.

    A line has neither its end, "\n" or "\r\n", nor the byte order mark. `str.splitlines` would end lines at U+2028, form
    feeds and others too, which stand in the middle of sentences.

    Raises:
        ValueError: it begins as UTF-16 or an archive does.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                if kind := next((kind for start, kind in OTHER_KINDS.items() if line.startswith(start)), None):
                    raise UserError(f"{path} {kind}")
                line = line.removeprefix(BYTE_ORDER_MARK)
            yield number, line.removesuffix(b"\n").removesuffix(b"\r")


def good_lines(path: str | Path, bad: list[str], names: bool = False) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of the lines that can be read; "path:number: reason" of others is added to `bad`.

    Args:
        names: bytes that are no UTF-8 may be of the name of a file, and become what `os.fsencode` takes.
    """
    try:
        for number, line in numbered_lines(path):
            try:
                text = line.decode(errors="surrogateescape") if names else decoded(line)
            except UserError as error:
                bad.append(f"{path}:{number}: {error}")
                continue
            yield number, text
    except UserError as error:
        bad.append(str(error))


def listed(bad: Sequence[str], most: int = 20, count: int | None = None) -> str:
    """The first of what is bad, and how many more.

    Args:
        bad: all of them, or the first.
        most: named.
        count: of all; by default the length of `bad`.
    """
    more = (len(bad) if count is None else count) - len(bad[:most])
    return "; ".join(bad[:most]) + (f" and {more} more" if more else "")


def decoded(line: bytes) -> str:
    """The text of a line.

    Raises:
        ValueError: it is not UTF-8, or see `whole_text`.
    """
    try:
        return whole_text(line.decode())
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 at byte {error.start}") from error


def whole_text(text: str) -> str:
    r"""The text, which a tokenizer can take.

    Raises:
        ValueError: it holds a zero byte, or half a surrogate pair, as JSON that cuts an emoji in two does ("\ud83d").
    """
    if "\0" in text:
        raise UserError("a zero byte")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            # A line that may hold names of files, see `good_lines`, keeps its other bytes in this range.
            what = "not UTF-8" if "\udc80" <= text[error.start] <= "\udcff" else "half a surrogate pair"
            raise UserError(f"{what} at character {error.start}") from error
    return text


def read_lines(path: str | Path) -> Iterator[str]:
    """All lines of a text file of which none may be wrong, read one by one.

    Raises:
        ValueError: one is, or see `numbered_lines`; the message names file and line.
    """
    for number, line in numbered_lines(path):
        try:
            yield decoded(line)
        except UserError as error:
            raise UserError(f"{path}:{number}: {error}") from error
