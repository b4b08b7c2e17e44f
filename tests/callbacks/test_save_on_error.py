"""A run that an error ends is saved first, and goes on from there as it would have."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import PRETRAIN, fails, write

import cli
from d2v_lightning.flavour import pl

LAST = Path("checkpoints/last.ckpt")


class Fails(pl.Callback):
    """The data's disk is gone at a micro-batch."""

    def __init__(self, batch: int = 5) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.batch:
            raise OSError(errno.EIO, os.strerror(errno.EIO), "/data/x.png")


class FailsInTheStep(pl.Callback):
    """The third optimiser step has changed the weights, and is not finished."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        def fail(*_: Any) -> None:
            if trainer.global_step == 2:
                raise OSError(errno.EIO, os.strerror(errno.EIO), "/data/x.png")

        trainer.optimizers[0].register_step_post_hook(fail)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[str, Any]]:
    """The command of a run of four steps of two micro-batches, and what it ends with."""
    folder = tmp_path_factory.mktemp("whole")
    settings = {**PRETRAIN, "trainer": {**PRETRAIN["trainer"], "accumulate_grad_batches": 2}}
    command = ["fit", "--config", write(folder / "tiny.yaml", settings)]
    cli.main([*command, "--trainer.default_root_dir", str(folder / "run")])
    return command, torch.load(folder / "run" / LAST, weights_only=True)


def run(command: list[str], folder: Path, *options: str) -> list[str]:
    return [*command, "--trainer.default_root_dir", str(folder), *options]


@pytest.mark.parametrize("batch", [4, 5])
def test_the_last_optimiser_step_is_saved_and_the_run_goes_on_from_it(
    batch: int, whole: tuple[list[str], dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, unbroken = whole
    failing = ["--trainer.callbacks+", f"{__name__}.Fails", "--trainer.callbacks.batch", str(batch)]
    printed = fails(capsys, 1, *run(command, tmp_path, *failing))
    assert printed == (
        "error: /data/x.png: Input/output error: look at the disk or the network. "
        f"Saved after optimiser step 2: go on with --ckpt_path {tmp_path / LAST}\n"
    )
    assert torch.load(tmp_path / LAST, weights_only=True)["global_step"] == 2
    cli.main(run(command, tmp_path, "--ckpt_path", "last"))
    resumed = torch.load(tmp_path / LAST, weights_only=True)
    assert resumed["global_step"] == unbroken["global_step"] == 4
    for name, weight in unbroken["state_dict"].items():
        assert torch.equal(weight, resumed["state_dict"][name]), name


def test_nothing_is_saved_while_the_optimiser_is_at_work(
    whole: tuple[list[str], dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep = ["--model_checkpoint.every_n_train_steps", "1"]
    failing = ["--trainer.callbacks+", f"{__name__}.FailsInTheStep"]
    printed = fails(capsys, 1, *run(whole[0], tmp_path, *keep, *failing))
    assert printed.endswith(f"The last whole checkpoint is {tmp_path / LAST}\n")
    assert torch.load(tmp_path / LAST, weights_only=True)["global_step"] == 2


def test_a_loss_that_is_not_finite_saves_nothing(
    whole: tuple[list[str], dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = fails(capsys, 1, *run(whole[0], tmp_path, "--model.optimization.lr", "1e38"))
    assert "Saved after" not in printed
    assert "Nothing was saved after it" in printed


def test_a_full_disk_leaves_the_old_checkpoint(
    whole: tuple[list[str], dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = torch.save

    def save(content: dict[str, Any], file: Any) -> None:
        if content["global_step"] > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(content, file)

    monkeypatch.setattr(torch, "save", save)
    keep = ["--model_checkpoint.every_n_train_steps", "1"]
    printed = fails(capsys, 1, *run(whole[0], tmp_path, *keep))
    assert "step=2.ckpt: No space left on device: free some space, or choose another disk. " in printed
    assert printed.endswith(f"The last whole checkpoint is {tmp_path / LAST}\n")
    assert torch.load(tmp_path / LAST, weights_only=True)["global_step"] == 1
    assert not list(tmp_path.rglob(".*.unfinished"))
