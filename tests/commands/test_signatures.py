"""What constructors take and annotations permit, in the words that mistakes are explained with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from d2v_lightning import Encoder, ImageEncoder, Optimization
from d2v_lightning.commands.resuming import StoreRun
from d2v_lightning.commands.signatures import (
    allows_none,
    annotations_of,
    choices,
    classes_in,
    holds_nan,
    is_concrete,
    parameters_of,
    readable,
    subclasses,
    takes,
    takes_anything,
)
from d2v_lightning.pretrain.pretraining import Pretraining


class Takes:
    def __init__(self, size: int, *more: str, rate: float | None = None, **rest: Any) -> None: ...


class Inner(Takes):
    def __init__(self, inner: Optimization) -> None: ...


class Innermost(Inner): ...


def test_parameters_that_have_a_name_are_seen() -> None:
    assert list(parameters_of(Takes)) == ["size", "rate"]
    assert (takes_anything(Takes), takes_anything(Inner)) == (True, False)
    assert annotations_of(Takes)["rate"] == float | None
    assert list(subclasses(Takes)) == [Inner, Innermost]
    assert (is_concrete(Encoder), is_concrete(ImageEncoder)) == (False, True)
    # bases of ours, and what the command line makes for itself
    assert not any(map(is_concrete, (Pretraining, StoreRun)))


def test_classes_that_are_configured_are_found_at_any_depth() -> None:
    assert classes_in(dict[str, list[Optimization | None]]) == [Optimization]
    assert classes_in(Sequence[Path] | int | Literal["a"]) == []


@pytest.mark.parametrize(
    ("annotation", "words", "chosen", "none"),
    [
        (int, "a whole number", [], False),
        (float | None, "a number or null", [], True),
        (Literal["a", "b"] | bool, "one of a, b or true or false", ["a", "b"], False),
        (tuple[int, str], "a list [a whole number, text]", [], False),
        (list[float], "a list, each a number", [], False),
        (Any, "Any", [], True),
        (Optimization, "Optimization", [], False),
    ],
)
def test_an_annotation_in_words(annotation: Any, words: str, chosen: list[str], none: bool) -> None:
    assert readable(annotation) == words
    assert choices(annotation) == chosen
    assert allows_none(annotation) is none


def test_values_are_taken_as_the_parser_takes_them() -> None:
    assert [takes(int, value) for value in (3, "three", 0.5)] == [True, False, False]
    assert takes(Any, object())
    assert takes(Literal["a"] | None, None)
    assert not takes(Literal["a"], "b")
    nan = float("nan")
    assert [holds_nan(value) for value in (nan, [1, [nan]], [1.0], "nan", None)] == [True, True, False, False, False]
