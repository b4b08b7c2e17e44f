"""Stored optimisers: a state for other parameters is refused, and a group that is added follows the schedule."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from d2v_lightning.optim.stored_optimizer import CheckedLambdaLR, checkpoint_name, refuse_optimizer_state
from d2v_lightning.support.errors import UserError


@pytest.fixture
def optimizer() -> torch.optim.Optimizer:
    """AdamW after a step, on a matrix and on two vectors."""
    torch.manual_seed(0)
    first, second = [nn.Parameter(torch.randn(2, 3))], [nn.Parameter(torch.randn(4)) for _ in range(2)]
    made = torch.optim.AdamW([{"params": first}, {"params": second, "weight_decay": 0.0}], lr=1.0)
    for parameter in first + second:
        parameter.grad = torch.ones_like(parameter)
    made.step()
    return made


def test_its_own_state_is_taken_and_one_without_a_step(optimizer: torch.optim.Optimizer) -> None:
    whole = optimizer.state_dict()
    for state in (whole, {**whole, "state": {}}):
        before = copy.deepcopy(state)
        refuse_optimizer_state(optimizer, state, "file")
        optimizer.load_state_dict(state)  # what is taken can be loaded, and looking at it changed nothing
        assert optimizer.state_dict()["param_groups"] == before["param_groups"]
        assert optimizer.state_dict()["state"].keys() == before["state"].keys()


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda c: c["param_groups"][0]["params"].append(9), "groups of 2, 2 parameters, this run has groups of 1, 2"),
        (lambda c: c["param_groups"].reverse(), "groups of 2, 1 parameters, this run has groups of 1, 2"),
        (lambda c: c["param_groups"][1].update(params=[1, True]), "params of a group holds True"),
        (lambda c: c["param_groups"][1].update(betas=[0.9]), "param_groups.betas is of type list"),
        (lambda c: c["state"].update({7: c["state"][0]}), "a state for parameter 7, which is in none of its groups"),
        (lambda c: c["state"][2].pop("exp_avg_sq"), "state.2 has no exp_avg_sq, which other parameters have"),
        (
            lambda c: c["state"][0].update(exp_avg=torch.zeros(3, 2)),
            r"exp_avg has shape \(3, 2\), its parameter \(2, 3\)",
        ),
        (lambda c: c["state"][0]["exp_avg"].fill_(float("inf")), "state.0.exp_avg holds NaN or infinity"),
        (lambda c: c["state"][0].update(exp_avg=torch.zeros(2, 3).int()), "holds torch.int32, where real numbers"),
        (lambda c: c["state"][0].update(step="three"), "state.0.step is 'three', where numbers are expected"),
        (lambda c: c.pop("state"), "state is None, where names and values are expected"),
    ],
)
def test_a_state_for_other_parameters_is_refused(
    optimizer: torch.optim.Optimizer, harm: Callable[[Any], object], said: str
) -> None:
    state = copy.deepcopy(optimizer.state_dict())
    harm(state)
    with pytest.raises(UserError, match=rf"^file: .*{said}"):
        refuse_optimizer_state(optimizer, state, "file")


def schedule(optimizer: torch.optim.Optimizer) -> CheckedLambdaLR:
    return CheckedLambdaLR(optimizer, lambda step: 1.0 / (1 + step), nn.Linear(1, 1))


def rates(optimizer: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


def test_a_group_that_is_added_follows_the_schedule_in_proportion(optimizer: torch.optim.Optimizer) -> None:
    made = schedule(optimizer)
    optimizer.step()
    made.step()
    assert rates(optimizer) == [0.5, 0.5]
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": 0.1})
    for step in (2, 3):
        optimizer.step()
        made.step()
        assert rates(optimizer) == pytest.approx([1 / (1 + step), 1 / (1 + step), 0.1 * 2 / (1 + step)])


def test_its_state_goes_on_and_one_of_another_form_is_refused(optimizer: torch.optim.Optimizer) -> None:
    made = schedule(optimizer)
    for _ in range(3):
        optimizer.step()
        made.step()
    state = made.state_dict()
    assert "_name" not in state
    again = schedule(torch.optim.AdamW([{"params": group["params"]} for group in optimizer.param_groups], lr=1.0))
    again.load_state_dict(state)
    optimizer.step()
    made.step()
    again.optimizer.step()
    again.step()
    assert again.get_last_lr() == made.get_last_lr() == [0.2, 0.2]
    for change in ({"last_epoch": -4}, {"base_lrs": [1.0]}, {"_last_lr": [1.0]}):
        with pytest.raises(UserError, match=rf"this checkpoint: lr_schedulers.0.{next(iter(change))}"):
            again.load_state_dict({**state, **change})


def test_groups_with_schedules_of_their_own_go_on(optimizer: torch.optim.Optimizer) -> None:
    functions: list[Callable[[int], float]] = [lambda step: 1.0 / (1 + step), lambda step: 1.0 - step / 10]
    made = CheckedLambdaLR(optimizer, functions, nn.Linear(1, 1))
    for _ in range(3):
        optimizer.step()
        made.step()
    assert rates(optimizer) == [0.25, 0.7]
    parameters = [{"params": group["params"]} for group in optimizer.param_groups]
    again = CheckedLambdaLR(torch.optim.AdamW(parameters, lr=1.0), functions, nn.Linear(1, 1))
    again.load_state_dict(made.state_dict())
    again.optimizer.step()
    again.step()
    assert again.get_last_lr() == [0.2, 0.6]


def test_parameters_of_a_group_that_comes_back_are_trained_again(optimizer: torch.optim.Optimizer) -> None:
    made, added = schedule(optimizer), nn.Parameter(torch.zeros(1))
    optimizer.add_param_group({"params": [added], "lr": 0.1})
    optimizer.step()
    made.step()
    state = made.state_dict()
    added.requires_grad_(False)
    made.load_state_dict(state)
    assert added.requires_grad


def test_messages_name_the_file_that_is_restored() -> None:
    assert checkpoint_name(nn.Linear(1, 1)) == "this checkpoint"
