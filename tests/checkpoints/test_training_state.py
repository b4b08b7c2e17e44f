"""A run goes on from a whole state of the form that Lightning writes, or says in one line what is wrong with it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from d2v_lightning.flavour import pl
from d2v_lightning.support.errors import UserError

Damage = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A checkpoint after three steps."""
    folder = tmp_path_factory.mktemp("run")
    trainer = tiny.trainer([pl.callbacks.ModelCheckpoint(folder / "checkpoints", save_last=True)], 3, folder)
    trainer.fit(tiny.tiny_model(), tiny.loader())
    content: dict[str, Any] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return content


def resume(content: dict[str, Any], path: Path) -> Any:
    torch.save(content, path)
    trainer = tiny.trainer([pl.callbacks.ModelCheckpoint(path.parent / "checkpoints", save_last=True)], 4, path.parent)
    trainer.fit(tiny.tiny_model(), tiny.loader(), ckpt_path=path)
    return trainer


def optimizer(content: dict[str, Any]) -> Any:
    return content["optimizer_states"][0]


def of_checkpoints(content: dict[str, Any]) -> Any:
    return next(state for name, state in content["callbacks"].items() if name.startswith("ModelCheckpoint"))


DAMAGES: dict[str, tuple[str, Damage]] = {
    "weights bool": ("mask_token holds torch.bool", lambda c: _turn(c, lambda t: t.bool())),
    "weights complex": ("mask_token holds torch.complex64", lambda c: _turn(c, lambda t: t.to(torch.complex64))),
    "weights nan": ("mask_token holds NaN", lambda c: _turn(c, lambda t: t / 0)),
    "weights list": ("its weights are a list", lambda c: c.update(state_dict=[])),
    "schedules number": ("lr_schedulers is 3", lambda c: c.update(lr_schedulers=3)),
    "schedule list": ("lr_schedulers.0 is of type list", lambda c: c.update(lr_schedulers=[[]])),
    "schedule gone": ("lr_schedulers holds 0 states", lambda c: c.update(lr_schedulers=[])),
    "schedule without": ("lr_schedulers.0 has no lr_lambdas", lambda c: c["lr_schedulers"][0].pop("lr_lambdas")),
    "schedule epoch": ("last_epoch is 'x'", lambda c: c["lr_schedulers"][0].update(last_epoch="x")),
    "optimiser none": ("optimizer_states is None", lambda c: c.update(optimizer_states=None)),
    "optimiser gone": ("has no optimizer_states", lambda c: c.pop("optimizer_states")),
    "optimiser group": ("groups of 11 parameters, this run", lambda c: optimizer(c)["param_groups"].pop()),
    "optimiser rate": ("param_groups.lr is 'x'", lambda c: optimizer(c)["param_groups"][0].update(lr="x")),
    "moment shape": (
        r"state.0.exp_avg has shape \(3,\)",
        lambda c: optimizer(c)["state"][0].update(exp_avg=torch.ones(3)),
    ),
    # A fused AdamW writes beyond the end of either.
    "moment scalar": (
        r"state.0.exp_avg has shape \(\)",
        lambda c: optimizer(c)["state"][0].update(exp_avg=torch.tensor(1.0)),
    ),
    "moment expanded": (
        "fewer numbers than that",
        lambda c: optimizer(c)["state"][0].update(
            exp_avg=torch.ones(1).expand(optimizer(c)["state"][0]["exp_avg"].shape)
        ),
    ),
    "optimiser params": (
        "params of a group holds",
        lambda c: optimizer(c)["param_groups"][0]["params"].__setitem__(0, []),
    ),
    "moment nan": ("state.0.exp_avg holds NaN", lambda c: optimizer(c)["state"][0]["exp_avg"].fill_(torch.nan)),
    "moment gone": ("state.0 has no exp_avg", lambda c: optimizer(c)["state"][0].pop("exp_avg")),
    "loops list": ("loops is of type list", lambda c: c.update(loops=[])),
    "loop without": ("fit_loop has no epoch_progress", lambda c: c["loops"]["fit_loop"].pop("epoch_progress")),
    "loop count": (
        "current.ready is -1",
        lambda c: c["loops"]["fit_loop"]["epoch_progress"]["current"].update(ready=-1),
    ),
    "loader": ("combined_loader is 3", lambda c: c["loops"]["fit_loop"]["state_dict"].update(combined_loader=3)),
    "callbacks list": ("callbacks is of type list", lambda c: c.update(callbacks=[])),
    "seed": ("seed 'x'", lambda c: c["callbacks"]["StepSeed"].update(seed="x")),
    "best file": ("best_model_path is 3", lambda c: of_checkpoints(c).update(best_model_path=3)),
    # Lightning's ModelCheckpoint deletes what its state names below its folder, and takes ".." for a name.
    "file outside": (
        "may lead out of the folder",
        lambda c: of_checkpoints(c).update(kth_best_model_path="/run/checkpoints/../../home"),
    ),
}


def _turn(content: dict[str, Any], how: Callable[[torch.Tensor], torch.Tensor]) -> None:
    content["state_dict"]["student.mask_token"] = how(content["state_dict"]["student.mask_token"])


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_state_of_another_form_is_refused_by_its_file_and_key(
    damage: str, written: dict[str, Any], tmp_path: Path
) -> None:
    said, harm = DAMAGES[damage]
    content = copy.deepcopy(written)
    harm(content)
    with pytest.raises(UserError, match=said) as error:
        resume(content, tmp_path / "odd.ckpt")
    assert "\n" not in str(error.value)
    if damage != "seed":  # a callback does not know the file
        assert str(tmp_path / "odd.ckpt") in str(error.value)


def test_weights_of_other_precision_are_said(written: dict[str, Any], tmp_path: Path) -> None:
    content = copy.deepcopy(written)
    _turn(content, torch.Tensor.half)
    with pytest.warns(UserWarning, match="stored as torch.float16 and were converted to torch.float32"):
        assert resume(content, tmp_path / "half.ckpt").global_step == 4
