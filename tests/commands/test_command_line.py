"""The command line: what it makes of settings, and how it trains, evaluates and predicts."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tiny_runs import DATA, PRETRAIN, ROOT, fails, write
from torch.utils.data import DataLoader

import cli
from d2v_lightning import Data2Vec, ImageClassifier
from d2v_lightning.callbacks.preemption import Preemption
from d2v_lightning.callbacks.run_summary import RunSummary
from d2v_lightning.commands.command_line import D2VCLI
from d2v_lightning.flavour import pl
from datamodules import ImageDataModule

pytestmark = pytest.mark.usefixtures("in_tmp")


def test_debug_shows_the_traceback(
    config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("D2V_DEBUG", "1")
    with pytest.raises(SystemExit):
        cli.main(["fit", "--config", config, "--model.optimization.lr", "-1"])
    assert "Traceback" in capsys.readouterr().err


class Breaks(pl.Callback):
    """A bug in somebody's code."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        raise ValueError("a bug")


def test_an_unexpected_error_keeps_its_traceback(config: str) -> None:
    with pytest.raises(ValueError, match="a bug"):
        cli.main(["fit", "--config", config, "--trainer.callbacks+", f"{__name__}.Breaks"])


# ---- a run and its folder ------------------------------------------------------------------------------------------


class Foreign(pl.LightningDataModule):
    """Data that knows nothing of this project's loaders."""

    def train_dataloader(self) -> DataLoader[Any]:
        samples = [{"inputs": torch.rand(1, 8, 8), "mask": torch.tensor([[True, False, False, True]])}] * 8
        return DataLoader(samples, batch_size=4)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "options", "shared_out"),
    [
        (PRETRAIN["data"], [], False),
        ({"class_path": f"{__name__}.Foreign"}, [], True),
        ({"class_path": f"{__name__}.Foreign"}, ["--trainer.use_distributed_sampler", "false"], False),
    ],
)
def test_lightning_shares_out_the_samples_of_foreign_data_only(
    data: dict[str, Any], options: list[str], shared_out: bool, tmp_path: Path
) -> None:
    path = write(tmp_path / "run.yaml", {**PRETRAIN, "data": data})
    cli.main(["fit", "--config", path, "--trainer.max_steps", "1", "--trainer.default_root_dir", "out", *options])
    assert yaml.safe_load(Path("out/config.yaml").read_text())["trainer"]["use_distributed_sampler"] is shared_out


def test_the_last_checkpoint_is_the_end_of_the_run(
    config: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    cli.main(["fit", "--config", config, "--trainer.max_steps", "3", "--model_checkpoint.every_n_train_steps", "2"])
    said = caplog.text + "".join(str(warning.message) for warning in recwarn)
    assert "3 optimiser steps" in said  # our own line
    assert not re.search("litlogger|in eval mode", said)
    last = torch.load(tmp_path / "runs" / "tiny" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 3


class NeverRun(D2VCLI):
    """Everything up to the run."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def test_callbacks_and_loggers_of_a_second_file_come_beside_ours(config: str, tmp_path: Path) -> None:
    callbacks = {"callbacks": [{"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss"}}]}
    more = write(
        tmp_path / "more.yaml", {"trainer": callbacks, "model_checkpoint": {"monitor": "val/loss", "save_top_k": 3}}
    )
    board = str(ROOT / "configs" / "logging" / "tensorboard.yaml")
    run = NeverRun(["fit", "--config", config, "--config", more, "--config", board])
    kinds = [type(callback).__name__ for callback in run.trainer.callbacks]
    for kind in (
        "EarlyStopping",
        pl.callbacks.ModelCheckpoint,
        RunSummary,
        Preemption,
        pl.callbacks.LearningRateMonitor,
        "SaveConfig",
        "StoreRun",
    ):
        assert kinds.count(kind if isinstance(kind, str) else kind.__name__) == 1
    checkpoint = run.trainer.checkpoint_callback
    assert isinstance(checkpoint, pl.callbacks.ModelCheckpoint)
    assert checkpoint.save_top_k == 3
    assert checkpoint.save_last is True
    assert [type(logger) for logger in run.trainer.loggers] == [pl.loggers.TensorBoardLogger, pl.loggers.CSVLogger]
    assert run.trainer.loggers[0].save_dir == "runs/tiny"


def test_wandb_offline_gets_metrics_and_settings(config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logging = str(ROOT / "configs" / "logging" / "wandb.yaml")
    cli.main(["fit", "--config", config, "--config", logging, "--trainer.max_steps", "1"])
    try:
        settings = dict(wandb.run.config)
        summary = dict(wandb.run.summary)
    finally:
        wandb.finish()
    assert settings["model"]["init_args"]["optimization"]["init_args"]["lr"] == 0.001
    assert "train/loss" in summary
    assert list((tmp_path / "runs" / "tiny" / "wandb").glob("offline-run-*"))


# ---- evaluation ----------------------------------------------------------------------------------------------------


def test_validate_and_test_take_everything_from_the_checkpoint(
    pretrained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = str(pretrained / "checkpoints" / "last.ckpt")
    for command in ("validate", "test"):
        cli.main([command, "--ckpt_path", last, "--trainer.accelerator", "cpu"])
    printed = capsys.readouterr().out
    model = Data2Vec.load_from_checkpoint(last)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    loss = trainer.test(model, ImageDataModule(**DATA), verbose=False)[0]["test/loss"]
    assert str(loss)[:8] in printed  # cut, not rounded


def test_features_of_a_pretrained_model(pretrained: Path, tmp_path: Path) -> None:
    last = str(pretrained / "checkpoints" / "last.ckpt")
    cli.main(["predict", "--ckpt_path", last, "--predictions.output", "out/x.npy", "--trainer.accelerator", "cpu"])
    features = np.load(tmp_path / "out" / "x.npy")
    data = ImageDataModule(**DATA, image_size=8, patch_size=4, num_channels=1)
    data.setup("predict")
    model = Data2Vec.load_from_checkpoint(last)
    expected = torch.cat([model.predict_step(batch, 0) for batch in data.predict_dataloader()])
    np.testing.assert_allclose(features, expected.numpy(), rtol=1e-5, atol=1e-6)
    rows = list(csv.DictReader((tmp_path / "out" / "x.csv").open()))
    assert [row["path"] for row in rows] == data.predict_paths
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"x.npy", "x.csv"}


def test_labels_of_a_classifier(classifier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["predict", "--ckpt_path", str(classifier), "--data.batch_size", "100", "--trainer.accelerator", "cpu"]
    cli.main(args)
    output = classifier.parent.parent / "predictions.csv"
    rows = list(csv.DictReader(output.open()))
    model = ImageClassifier.load_from_checkpoint(classifier).eval()
    data = ImageDataModule(**DATA, task="classify", image_size=8, num_channels=1)
    data.setup("predict")
    with torch.no_grad():
        probabilities = torch.cat([model(batch["inputs"]).softmax(dim=1) for batch in data.predict_dataloader()])
    assert model.class_names is not None
    assert [row["label"] for row in rows] == [model.class_names[label] for label in probabilities.argmax(dim=1)]
    for place, suffix in enumerate(("", "_2", "_3", "_4", "_5")):
        written = [float(row["probability" + suffix]) for row in rows]
        np.testing.assert_allclose(written, probabilities.sort(descending=True).values[:, place], atol=1e-5)
    assert [int(row["index"]) for row in rows] == list(range(len(data.predict_paths)))

    before = output.read_bytes()
    said = "predictions.csv exists: choose another file (--predictions.output FILE), or overwrite it (--predictions."
    assert said in fails(capsys, 1, *args)
    assert output.read_bytes() == before
    cli.main([*args, "--predictions.overwrite", "true", "--predictions.top", "1"])
    assert output.read_text().splitlines()[0] == "index,path,label,probability"


def test_a_model_that_does_not_fit_the_weights_is_one_line(
    pretrained: Path, config: str, classifier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["validate", "--config", config, "--ckpt_path"]
    assert "holds another model: model is" in fails(capsys, 2, *args, str(classifier))
    last = str(pretrained / "checkpoints" / "last.ckpt")
    with pytest.warns(UserWarning, match="the command line's model is used.*mlp_ratio"):
        printed = fails(capsys, 1, *args, last, "--model.student.backbone.transformer.mlp_ratio", "2")
    assert "weights do not fit the model" in printed
    assert len(printed.splitlines()) == 1


def test_the_command_itself(pretrained: Path, tmp_path: Path) -> None:
    """In a process of its own."""
    output = tmp_path / "features.npy"
    args = [
        "predict",
        "--ckpt_path",
        str(pretrained / "checkpoints" / "last.ckpt"),
        "--predictions.output",
        str(output),
    ]
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "cli.py"),
            *args,
            "--trainer.accelerator=cpu",
            "--trainer.enable_progress_bar=false",
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert np.load(output).shape == (250, 8)
    assert f"predictions for 250 samples: {output}" in done.stderr
