"""Stored forms: plain data of a file that is of another kind than expected is refused by the name of its place."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from d2v_lightning.support.errors import UserError
from d2v_lightning.support.stored_form import as_list, as_mapping, compare_form, short

FORM = {"step": 3, "rate": 0.5, "on": True, "name": "x", "pair": (1, 2), "unset": None, "state_dict": {"w": 1}}
GOOD = {"step": 0, "rate": 7, "on": False, "name": "", "pair": [4, 5], "unset": "anything", "state_dict": {}}


@pytest.mark.parametrize(
    "found",
    [
        GOOD,
        {**GOOD, "rate": torch.tensor([0.25]), "more": [1]},
        {key: value for key, value in GOOD.items() if key != "state_dict"},
        {**GOOD, "state_dict": {"w": "another kind"}},
    ],
    ids=["whole", "tensor_and_more", "without_state", "other_state"],
)
def test_values_of_the_same_kinds_are_taken_as_they_are(found: dict[str, Any]) -> None:
    before = copy.deepcopy(found)
    compare_form(found, FORM, "file")
    assert found == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"step": -1}, "file.step is -1, where a count is expected"),
        ({"step": True}, "file.step is True, where a count is expected"),
        ({"rate": float("nan")}, "file.rate is nan, where a number is expected"),
        ({"rate": torch.tensor([1.0, 2.0])}, "file.rate is of type Tensor, where a number is expected"),
        ({"rate": torch.tensor(True)}, "file.rate is of type Tensor"),
        ({"on": 1}, "file.on is 1, where true or false is expected"),
        ({"name": b"x"}, "file.name is of type bytes, where text is expected"),
        ({"pair": [1]}, "file.pair is of type list, where 2 values are expected"),
        ({"pair": [1, "2"]}, "file.pair.1 is '2', where a count is expected"),
        ({"state_dict": []}, "file.state_dict is of type list, where names and values are expected"),
    ],
)
def test_a_value_of_another_kind_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        compare_form({**GOOD, **change}, FORM, "file")


def test_what_is_missing_is_named() -> None:
    with pytest.raises(UserError, match=r"^file.a has no b: it was not written by this project$"):
        compare_form({"a": {}}, {"a": {"b": 1}}, "file")
    with pytest.raises(UserError, match=r"^file is None, where names and values are expected$"):
        as_mapping(None, "file")
    with pytest.raises(UserError, match=r"^file is of type tuple, where a list is expected$"):
        as_list((), "file")


def test_a_value_in_a_message_is_short() -> None:
    assert short("y" * 500) == "'" + "y" * 59
    assert short({"a": 1}) == "of type dict"
