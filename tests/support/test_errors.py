"""Errors: one line that is short enough to read, names its file once, and keeps its class."""

from __future__ import annotations

import errno
import os

import pytest

from d2v_lightning.support.errors import NotFoundError, UserError, at_least, flat, naming, probabilities, reason_of


def test_a_message_without_end_keeps_its_beginning_and_its_end() -> None:
    said = str(UserError(f"first {'x' * 5000} last"))
    assert len(said) < 1600
    assert said.startswith("first x")
    assert said.endswith("x last")
    assert str(UserError("x" * 1500)) == "x" * 1500


def test_a_file_is_named_once_by_an_error_of_the_same_class() -> None:
    with pytest.raises(NotFoundError, match=r"^a/b\.yaml: no such recipe$"), naming("a/b.yaml"):
        raise NotFoundError("no such recipe")
    with pytest.raises(UserError, match=r"^a/b\.yaml: odd$"), naming("a/b.yaml"), naming("a/b.yaml"):
        raise UserError("odd")
    with pytest.raises(ValueError, match=r"^theirs$"), naming("a/b.yaml"):
        raise ValueError("theirs")
    assert issubclass(NotFoundError, FileNotFoundError)


def test_bounds_are_permitted_and_what_lies_beyond_is_named() -> None:
    at_least(1, dim=1, depth=None, heads=7)
    with pytest.raises(UserError, match=r"^depth 0: permitted is 1 or more$"):
        at_least(1, dim=4, depth=0)
    probabilities(first=0.0, second=1.0)
    for value in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match=rf"^dropout {value}: it is a probability"):
            probabilities(other=0.5, dropout=value)


def test_the_reason_of_a_failure_is_one_line_without_its_path() -> None:
    assert flat("two\n  lines\t and  more ") == "two lines and more"
    missing = OSError(errno.ENOENT, os.strerror(errno.ENOENT), "/data/x.png")
    assert reason_of(missing) == "No such file or directory"
    assert reason_of(ValueError("bad\n data")) == "bad data"
    assert reason_of(EOFError()) == "EOFError"
