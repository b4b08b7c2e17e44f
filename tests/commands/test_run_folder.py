"""The folder of a run: what a run leaves in it, and that no other run gets in."""

from __future__ import annotations

import csv
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_runs import fails

import cli
from d2v_lightning.support.locks import only_one_in

pytestmark = pytest.mark.usefixtures("in_tmp")


def test_a_run_leaves_config_metrics_and_checkpoints(pretrained: Path) -> None:
    assert {path.name for path in pretrained.iterdir()} == {"checkpoints", "config.yaml", "metrics"}
    names = {path.name for path in (pretrained / "checkpoints").iterdir()}
    assert names == {"epoch=0-step=2.ckpt", "epoch=0-step=4.ckpt", "last.ckpt"}
    settings = yaml.safe_load((pretrained / "config.yaml").read_text())
    assert settings["data"]["init_args"]["batch_size"] == 16
    assert settings["model_checkpoint"]["dirpath"] is None  # so that it can be used for another folder
    rows = list(csv.DictReader((pretrained / "metrics" / "version_0" / "metrics.csv").open()))
    assert sum(bool(row["train/loss"]) for row in rows) == 4
    assert any(row.get("train/lr/x1_decay") or row.get("train/lr") for row in rows)
    logged = yaml.safe_load((pretrained / "metrics" / "version_0" / "hparams.yaml").read_text())
    assert logged["model"]["init_args"]["optimization"]["init_args"]["lr"] == 0.001


def test_a_second_run_in_the_folder_is_refused(
    pretrained: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in pretrained.rglob("*") if path.is_file()}
    printed = fails(capsys, 2, "fit", "--config", config, "--trainer.default_root_dir", str(pretrained))
    assert "holds another run" in printed
    assert "--trainer.default_root_dir" in printed
    assert "--ckpt_path" in printed
    assert {path: path.read_bytes() for path in pretrained.rglob("*") if path.is_file()} == before


def test_a_trial_run_leaves_the_folder_alone(pretrained: Path, config: str) -> None:
    before = {path: path.read_bytes() for path in pretrained.rglob("*") if path.is_file()}
    cli.main(
        ["fit", "--config", config, "--trainer.default_root_dir", str(pretrained), "--trainer.fast_dev_run", "true"]
    )
    assert {path: path.read_bytes() for path in pretrained.rglob("*") if path.is_file()} == before


def _hold(folder: Path, pipe: Any) -> None:
    with only_one_in(folder):
        pipe.send("held")
        signal.pause()


def test_a_folder_belongs_to_one_run_until_its_process_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tiny_runs import PRETRAIN, write

    monkeypatch.chdir(tmp_path)
    command = ["fit", "--config", write(tmp_path / "tiny.yaml", PRETRAIN), "--trainer.max_steps", "1"]
    run = tmp_path / "runs" / "tiny"
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_hold, args=(run, theirs))
    process.start()
    assert ours.recv() == "held"
    with pytest.raises(SystemExit) as stopped:
        cli.main(command)
    printed = capsys.readouterr().err
    assert stopped.value.code == 1
    assert printed[printed.index("error: ") :].startswith(
        f"error: {Path('runs/tiny')} is in use by another run (process {process.pid} on "
    )
    assert [path.name for path in run.iterdir()] == [".lock"]
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    half, foreign = run / "checkpoints" / ".step=1.ckpt.unfinished", run / "checkpoints" / ".notes.unfinished"
    half.parent.mkdir()
    for path in (half, foreign):
        path.write_text("half of a file")
    cli.main(command)
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints", "config.yaml", "metrics"]
    assert foreign.exists()
    assert not half.exists()
