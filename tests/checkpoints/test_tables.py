"""Name tables: weights go out under the other format's names and come back, and what does not fit is named."""

from __future__ import annotations

import pytest
import torch

from d2v_lightning.checkpoints.tables import (
    Row,
    State,
    depth_of,
    drop,
    needed_of,
    prefixed,
    their_names,
    to_ours,
    to_theirs,
    weight_and_bias,
)
from d2v_lightning.support.errors import UserError

TABLE = {**weight_and_bias("blocks.#.qkv", "layer.#.q", "layer.#.k"), "out.weight": ("head.#+1.w",), "token": ("mask",)}
TABLE["out.#.weight"] = ("head.#+1.w",)


def weights() -> State:
    generator = torch.Generator().manual_seed(0)
    shapes = {"blocks.1.qkv.weight": (4, 3), "blocks.1.qkv.bias": (4,), "out.2.weight": (2, 2), "token": (3,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_a_number_is_carried_over_or_counted_on() -> None:
    assert their_names("blocks.7.qkv.bias", TABLE) == ("layer.7.q.bias", "layer.7.k.bias")
    assert their_names("out.2.weight", TABLE) == ("head.3.w",)
    with pytest.raises(KeyError):
        their_names("blocks.7.norm.bias", TABLE)


def test_weights_go_out_and_come_back_and_each_has_its_row() -> None:
    ours = weights()
    theirs = to_theirs(ours, TABLE, flat={"mask": (1, 1, 3)})
    assert {name: tuple(tensor.shape) for name, tensor in theirs.items()} == {
        "layer.1.q.weight": (2, 3), "layer.1.k.weight": (2, 3), "layer.1.q.bias": (2,), "layer.1.k.bias": (2,),
        "head.3.w": (2, 2), "mask": (1, 1, 3),
    }  # fmt: skip
    rows: list[Row] = []
    theirs["left"] = torch.zeros(1)
    back = to_ours(ours, theirs, TABLE, "file", rows, below="student.")
    assert list(theirs) == ["left"], "what is used is taken out"
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in ours.items())
    assert Row("mask", (1, 1, 3), "converted", "student.token") in rows
    assert Row("head.3.w", (2, 2), "matched", "student.out.2.weight") in rows
    drop(theirs, "left", "nobody needs it", rows)
    assert (theirs, rows[-1]) == ({}, Row("left", (1,), "dropped", "nobody needs it"))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "layer.1.k.bias",
            None,
            r"file: weights missing \['layer.1.k.bias'\], not expected \['layer.1.q.bias', 'more'\]",
        ),
        ("mask", torch.zeros(4), r"file: weight 'mask' has shape \(4,\), which does not fit \(3,\)"),
        ("mask", torch.zeros(3, dtype=torch.int64), "holds torch.int64, where real numbers are expected"),
        ("mask", torch.tensor([0.0, 1.0, float("nan")]), "file: weight 'mask' holds NaN or infinity"),
        ("layer.1.k.weight", torch.zeros(2, 2), "'layer.1.q.weight' has another"),
    ],
)
def test_what_does_not_fit_is_named(name: str, change: torch.Tensor | None, message: str) -> None:
    theirs = {**to_theirs(weights(), TABLE), "more": torch.zeros(1)}
    if change is None:
        del theirs[name]
    else:
        theirs[name] = change
    with pytest.raises(UserError, match=message):
        to_ours(weights(), theirs, TABLE, "file")


def test_where_a_backbone_is_wanted_the_rest_of_a_student_may_be_missing() -> None:
    table = prefixed({"proj.weight": ("w",)}, "backbone.", "encoder.") | {"token": ("mask",), "head": ("head",)}
    own = {name: torch.zeros(1) for name in table}
    theirs = {"mask": torch.zeros(1)}
    assert needed_of(own, theirs, table, whole=True) is own
    assert set(needed_of(own, theirs, table, whole=False)) == {"backbone.proj.weight", "token"}


def test_depth_is_the_number_of_modules_and_none_is_left_out() -> None:
    state = dict.fromkeys(("blocks.0.w", "blocks.1.w", "other.5.w"), 0)
    assert (depth_of(state, "blocks."), depth_of(state, "none.")) == (2, 0)
    with pytest.raises(UserError, match=r"weights below 'blocks\.9' are there, but not all below lower numbers"):
        depth_of({"blocks.0.w": 0, "blocks.9.w": 0}, "blocks.")
