"""Options of foreign files: plain data whatever held it, read by any of their names, and never guessed."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from d2v_lightning.checkpoints.options import (
    Options,
    as_options,
    ema_anneal_steps,
    option,
    parse_conv_layers,
    plain_options,
    refuse_contradictions,
    target_norms,
    truth,
)
from d2v_lightning.support.errors import UserError


def test_sections_are_dictionaries_and_references_are_followed() -> None:
    given = argparse.Namespace(model={"lr": "${optimization.lr}", "gone": "???"}, optimization={"lr": [0.5]}, n=(1, 2))
    assert plain_options(given) == {"model": {"lr": [0.5], "gone": None}, "optimization": {"lr": [0.5]}, "n": [1, 2]}
    assert plain_options({"a": "${b}", "b": "${a}"}) == {"a": None, "b": None}, "a circle leads nowhere"
    assert as_options(argparse.Namespace(a=1)) == as_options({"a": 1}) == {"a": 1}
    assert as_options([1]) is None
    deep: Any = {}
    for _ in range(60):
        deep = {"a": deep}
    with pytest.raises(UserError, match="nested without end"):
        plain_options(deep)


def test_the_first_option_that_is_set_counts_and_must_be_of_the_kind_of_the_default() -> None:
    options = {"new": None, "old": 3, "inside": {"rate": 0.5}, "flag": 1}
    assert option(options, "new", "old", default=7) == 3
    assert option(options, "new", "none", default=7) == 7
    assert option(options, "inside.rate", default=0.1) == 0.5
    assert option(options, "flag", default=False) == 1
    for value, default in (("3", 1), (float("nan"), 1.0), (float("inf"), 1), (0.5, True), (3, "text")):
        with pytest.raises(UserError, match=r"its option a is .*, where one such as"):
            option({"a": value}, "a", default=default)


def test_truth_is_not_guessed() -> None:
    assert [truth(value, "a") for value in (None, True, False)] == [None, True, False]
    for value in (1, "true", [True]):
        with pytest.raises(UserError, match=r"its option a is .*, where true or false is expected"):
            truth(value, "a")


def test_options_that_say_something_else_than_the_weights_are_refused() -> None:
    refuse_contradictions({"depth": 12, "ratio": 4.0001, "model": {}}, {"depth": 12, "ratio": 4.0, "model.width": 8})
    with pytest.raises(UserError, match=r"its option model\.width is 9, its weights are those of 8"):
        refuse_contradictions({"model": {"width": 9}}, {"model.width": 8})


def test_convolutions_are_read_from_text_that_is_never_evaluated() -> None:
    assert parse_conv_layers("[(512, 10, 5)] + [(512,3,2),(256, 2, 2)] * 2") == [
        (512, 10, 5), (512, 3, 2), (256, 2, 2), (512, 3, 2), (256, 2, 2)
    ]  # fmt: skip
    for spec in (None, "", "[(512, 10)]", "[(1,2,3)] - [(1,2,3)]", "__import__('os')"):
        with pytest.raises(UserError, match=r"its convolutions are given as"):
            parse_conv_layers(spec)


def test_norms_stand_in_the_order_in_which_fairseq_applies_them() -> None:
    options = {"instance_norm_target_layer": True, "batch_norm_target_layer": True, "layer_norm_targets": True}
    assert target_norms(options) == (["batch", "instance"], ["layer"])
    with pytest.raises(UserError, match="group_norm_target_layer is set"):
        target_norms({"group_norm_target_layer": True})


def test_options_remember_which_were_asked_for() -> None:
    options = Options({"model": {"depth": 2, "width": 3}, "lr": [0.1]})
    assert option(options, "model.depth", default=0) == 2
    assert options["model"].get("missing") is None
    assert options.read == {"model", "model.depth", "model.missing"}
    assert [name for name, _ in options.leaves() if name not in options.read] == ["model.width", "lr"]
    other = options.changed(lr=[0.2])
    assert (other["lr"], options["lr"]) == ([0.2], [0.1])
    assert "lr" in options.read, "and what is read of the one counts for the other"


def test_the_ema_rises_over_the_whole_run_where_nothing_is_said() -> None:
    """`ema_anneal_end_step: II("optimization.max_update")` in all of fairseq's classes."""
    cfg = {"optimization": {"max_update": 500}}
    assert [ema_anneal_steps(model, cfg) for model in ({}, {"ema_anneal_end_step": 7})] == [500, 7]
