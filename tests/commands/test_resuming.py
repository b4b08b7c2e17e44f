"""Going on: a run that was stopped ends as one that was not, and what its checkpoint contradicts is said."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import CLASSIFY, TRAINER, checkpoint, fails, weights, write

import cli
from d2v_lightning.commands.resuming import StoredRun
from d2v_lightning.support.errors import UserError

pytestmark = pytest.mark.usefixtures("in_tmp")


def test_a_checkpoint_of_another_run_does_not_open_the_folder(
    pretrained: Path, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classify = write(tmp_path / "classify.yaml", CLASSIFY)
    args = ["--trainer.default_root_dir", str(pretrained), "--ckpt_path", str(classifier)]
    assert "holds another run" in fails(capsys, 2, "fit", "--config", classify, *args)


def test_going_on_equals_never_having_stopped(pretrained: Path, config: str, tmp_path: Path) -> None:
    """From the checkpoint of step 2, in a new folder, to the same weights, bit for bit."""
    half = pretrained / "checkpoints" / "epoch=0-step=2.ckpt"
    cli.main(["fit", "--config", config, "--ckpt_path", str(half)])
    whole, resumed = (weights(run / "checkpoints" / "last.ckpt") for run in (pretrained, tmp_path / "runs" / "tiny"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not torch.equal(weights(half)["student.mask_token"], whole["student.mask_token"])


def test_a_run_killed_before_its_first_last_checkpoint_goes_on(pretrained: Path, config: str, tmp_path: Path) -> None:
    """The first checkpoint of a run is written before last.ckpt is."""
    run = tmp_path / "runs" / "tiny"
    (run / "checkpoints").mkdir(parents=True)
    shutil.copy(pretrained / "checkpoints" / "epoch=0-step=2.ckpt", run / "checkpoints")
    cli.main(["fit", "--config", config, "--ckpt_path", "last"])
    whole, resumed = (weights(folder / "checkpoints" / "last.ckpt") for folder in (pretrained, run))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_checkpoint_of_a_script_does_not_know_its_data(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = torch.load(pretrained / "checkpoints" / "last.ckpt", weights_only=True)
    del checkpoint["run"]
    torch.save(checkpoint, path := tmp_path / "script.ckpt")
    for more in ([], ["--data.predict_files", "x"]):
        assert f"{path} does not say which data" in fails(capsys, 2, "predict", "--ckpt_path", str(path), *more)


def test_a_run_killed_before_its_first_checkpoint_is_sent_again(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "runs" / "tiny"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("")
    refused = fails(capsys, 2, "fit", "--config", config)
    assert "holds another run" in refused
    assert "begin there anew (--ckpt_path last)" in refused
    cli.main(["fit", "--config", config, "--ckpt_path", "last", "--trainer.max_steps", "1"])
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert (run / "config_resumed_1.yaml").is_file()


def test_going_on_in_the_folder_with_nothing_but_the_checkpoint(config: str, tmp_path: Path) -> None:
    """Model, data and length of the run come from the file; the first configuration and metrics stay."""
    cli.main(["fit", "--config", config, "--ckpt_path", "last", "--trainer.max_steps", "1"])  # nothing there yet
    run = tmp_path / "runs" / "tiny"
    kept = {path: path.read_bytes() for path in (run / "config.yaml", *run.glob("metrics/version_0/*"))}
    first = weights(run / "checkpoints" / "last.ckpt")["student.mask_token"]
    options = [f"--trainer.{name}={str(value).lower()}" for name, value in TRAINER.items()]
    cli.main(["fit", "--ckpt_path", str(run / "checkpoints" / "last.ckpt"), *options, "--trainer.max_steps", "2"])
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 2
    assert not torch.equal(last["state_dict"]["student.mask_token"], first)
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert (run / "config_resumed_1.yaml").is_file()
    assert not (run / "checkpoints" / "last-v1.ckpt").exists()
    assert last["run"]["trainer"]["max_steps"] == 2
    assert last["run"]["data"]["init_args"]["batch_size"] == 16


def test_another_model_is_refused_when_going_on(
    pretrained: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    last = str(pretrained / "checkpoints" / "last.ckpt")
    printed = fails(capsys, 2, "fit", "--config", config, "--ckpt_path", last, "--model.optimization.lr", "5")
    assert "model.optimization.lr is 5.0 now and 0.001 in the checkpoint" in printed
    assert len(printed.splitlines()) == 1
    printed = fails(capsys, 2, "fit", "--ckpt_path", last, "--model.student.backbone.transformer.depth", "3")
    assert "model.student.backbone.transformer.depth is 3 now and 2 in the checkpoint" in printed


def test_changed_data_and_trainer_settings_are_said(pretrained: Path, config: str, tmp_path: Path) -> None:
    last = str(pretrained / "checkpoints" / "last.ckpt")
    free = ["--model.on_nonfinite", "skip", "--data.batch_size", "8", "--trainer.max_steps", "5"]
    with pytest.warns(UserWarning, match="changed settings: data.batch_size 16 -> 8, trainer.max_steps 4 -> 5.*order"):
        cli.main(["fit", "--config", config, "--ckpt_path", last, *free])
    assert torch.load(tmp_path / "runs/tiny/checkpoints/last.ckpt", weights_only=True)["global_step"] == 5


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (["data"], "run is a list, where a mapping is expected"),
        ({"data": [1]}, "run.data is a list, where a mapping is expected"),
        ({"data": {"init_args": {}}}, "run.data is not whole: it lacks the class or its arguments"),
        (
            {"data": {"class_path": "datamodules.ImageDataModule", "init_args": {}}, "trainer": [1]},
            "run.trainer is a list",
        ),
    ],
)
def test_settings_of_another_form_are_one_line(run: Any, reason: str, tmp_path: Path) -> None:
    torch.save({**checkpoint(), "run": run}, tmp_path / "odd.ckpt")
    with pytest.raises(UserError, match=reason) as error:
        StoredRun(str(tmp_path / "odd.ckpt"))
    assert str(error.value).startswith(str(tmp_path / "odd.ckpt: "))
