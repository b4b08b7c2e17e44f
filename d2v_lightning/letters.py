"""The letters of speech recognition: what stands beside those of an alphabet, and LibriSpeech's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from d2v_lightning.support.errors import NotFoundError, UserError
from d2v_lightning.support.lines import read_lines

BLANK, SEPARATOR, UNKNOWN = "<blank>", "|", "<unk>"
LIBRISPEECH = [BLANK, SEPARATOR, *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]


def read_vocabulary(given: list[str] | str) -> list[str]:
    """Tokens by number, from a list of them or the path of a file with one a line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the blank is not the first, the separator is missing, or a token stands there twice.
    """
    if isinstance(given, str):
        if not Path(given).is_file():
            raise NotFoundError(f"vocabulary: no file at {given} (or 'data', or a list of tokens)")
        given = [line.strip() for line in read_lines(given) if line.strip()]
    if len(set(given)) != len(given) or given[:1] != [BLANK] or SEPARATOR not in given:
        raise UserError(
            f"vocabulary is {given[:4]}...: it must begin with {BLANK!r}, hold {SEPARATOR!r}, and no token twice"
        )
    return list(given)


def spelt(numbers: Iterable[int], vocabulary: Sequence[str]) -> str:
    """The text that tokens stand for, by their numbers."""
    return "".join(vocabulary[number] for number in numbers).replace(SEPARATOR, " ")
