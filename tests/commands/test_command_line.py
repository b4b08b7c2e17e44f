"""The command line: what it says of mistakes, what a run leaves in its folder, going on, evaluating, predicting."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch.utils.data import DataLoader

import cli
from d2v_lightning import Data2Vec, ImageClassifier
from d2v_lightning.callbacks.preemption import Preemption
from d2v_lightning.callbacks.run_summary import RunSummary
from d2v_lightning.commands.command_line import D2VCLI
from d2v_lightning.flavour import pl
from datamodules import ImageDataModule

ROOT = Path(__file__).parents[2]

BACKBONE = {
    "encoder": {
        "class_path": "ImageEncoder",
        "init_args": {"image_size": 8, "patch_size": 4, "in_channels": 1, "dim": 8},
    },
    "transformer": {"dim": 8, "depth": 2, "num_heads": 2},
}
DATA = {"dataset": "digits", "batch_size": 16, "num_workers": 0, "num_masked_patches": 2, "min_block": 1}
TRAINER = {
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "log_every_n_steps": 1,
    "limit_val_batches": 1,
    "limit_test_batches": 1,
}
PRETRAIN = {
    "model": {
        "class_path": "Data2Vec",
        "init_args": {
            "student": {"backbone": BACKBONE, "decoder": {"dim": 8}},
            "targets": {"average_top_k_layers": 1},
            "loss": {},
            "ema_teacher": {},
            "optimization": {"lr": 0.001},
        },
    },
    "data": {"class_path": "ImageDataModule", "init_args": DATA},
    "trainer": {**TRAINER, "max_steps": 4},
}
CLASSIFY = {
    "model": {
        "class_path": "ImageClassifier",
        "init_args": {"num_classes": 10, "backbone": BACKBONE, "mixup": 0.0, "cutmix": 0.0},
    },
    "data": {
        "class_path": "ImageDataModule",
        "init_args": {**DATA, "task": "classify", "rand_augment": None, "random_erasing": 0.0},
    },
    "trainer": {**TRAINER, "max_steps": 1},
}


def write(path: Path, settings: Any) -> str:
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return str(path)


def fails(capsys: pytest.CaptureFixture[str], status: int, *args: str) -> str:
    """What a command line that must fail prints."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(args))
    printed = capsys.readouterr().err
    assert stopped.value.code == status, printed
    assert "Traceback" not in printed
    return printed[printed.index("error: ") :]


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def config(tmp_path: Path) -> str:
    return write(tmp_path / "tiny.yaml", PRETRAIN)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of four steps, with checkpoints of step 2 and 4."""
    folder = tmp_path_factory.mktemp("pretrained")
    path = write(folder / "tiny.yaml", PRETRAIN)
    keep = ["--model_checkpoint.every_n_train_steps", "2", "--model_checkpoint.save_top_k", "-1"]
    cli.main(["fit", "--config", path, "--trainer.default_root_dir", str(folder / "run"), *keep])
    return folder / "run"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    path = write(folder / "classify.yaml", CLASSIFY)
    cli.main(["fit", "--config", path, "--trainer.default_root_dir", str(folder / "run")])
    return folder / "run" / "checkpoints" / "last.ckpt"


# ---- mistakes ------------------------------------------------------------------------------------------------------


def changed(path: str, value: Any) -> dict[str, Any]:
    """PRETRAIN with one key (dotted) set, or taken out where the value is None."""
    settings: dict[str, Any] = yaml.safe_load(yaml.safe_dump(PRETRAIN))
    *parents, last = path.split(".")
    node = settings
    for parent in parents:
        node = node[parent]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return settings


MODEL = "model.init_args."


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (MODEL + "optimization.lrr", 1, ["unknown key 'lrr'", "model.optimization.lrr", "did you mean: lr\n"]),
        (MODEL + "student.backbone.transformer.depth", "two", ["transformer.depth cannot be 'two'", "a whole number"]),
        (MODEL + "teacher_scope", "backbon", ["cannot be 'backbon'", "one of", "did you mean: backbone"]),
        (MODEL + "loss", None, ["Data2Vec needs loss", "model.loss"]),
        (
            MODEL + "student.backbone.encoder",
            {"dim": 8},
            ["model.student.backbone.encoder has no class", "class_path to one of: AudioEncoder, ImageEncoder"],
        ),
        ("model.class_path", "Data2Vecc", ["unknown class 'Data2Vecc'", "did you mean: Data2Vec\n"]),
        ("data.init_args.batch_sise", 4, ["unknown key 'batch_sise'", "did you mean: batch_size"]),
        ("data.init_args.task", "pretran", ["data.task cannot be 'pretran'", "one of pretrain, classify"]),
        ("trainer.max_step", 3, ["unknown key 'max_step'", "did you mean: max_steps"]),
        (
            "trainer.callbacks",
            [{"class_path": "EarlyStoping"}],
            ["trainer.callbacks[0]", "did you mean: EarlyStopping"],
        ),
        ("trainr", {"max_steps": 3}, ["unknown key 'trainr'", "did you mean: trainer"]),
    ],
)
def test_a_typo_in_a_file_is_named_with_file_line_and_nearest_name(
    key: str, value: Any, expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = changed(key, value)
    path = write(tmp_path / "bad.yaml", settings)
    printed = fails(capsys, 2, "fit", "--config", path)
    for words in expected:
        assert words in printed
    assert len(printed.splitlines()) <= 5
    if value is not None:  # the line in the file holds the last part of the key
        line = re.search(r"bad\.yaml:(\d+)", printed)
        assert line is not None
        named = key.rpartition(".")[2] if "callbacks" not in key else "EarlyStoping"
        assert named in Path(path).read_text().splitlines()[int(line[1]) - 1]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["fit", "--config", "CONFIG", "--model.optimization.lrr", "3"], ["unknown key 'lrr'", "did you mean: lr\n"]),
        (["fit", "--config", "CONFIG", "--model.optimization.lr", "high"], ["cannot be 'high'", "a number"]),
        (["fit", "--config", "CONFIG", "--trainer.max_step", "3"], ["unknown key 'max_step'", "max_steps"]),
        (
            ["fit", "--config", "CONFIG", "--seed_everything", "abc"],
            ["seed_everything cannot be 'abc'", "whole number"],
        ),
        (["fit", "--config", "CONFIG", "--seed_everything", "-1"], ["seed_everything is -1", "0 to 4294967295"]),
        (["fit", "--config", "CONFIG", "--data.rot", "x"], ["--data.rot x", "did you mean: root"]),
        (["fit", "--config", "CONFIG", "--data.batch_size"], ["--data.batch_size needs a value"]),
        (
            ["fit", "--config", "CONFIG", "--data", "ImageData"],
            ["unknown class 'ImageData'", "did you mean: ImageDataModule"],
        ),
        (["fit", "--config", "CONFIG", "--model", "torch.nn.Linear"], ["unknown class 'torch.nn.Linear'", "Data2Vec"]),
        (
            ["fit", "--data.root", "x", "--config", "CONFIG"],
            ["--data.root stands before --config", "would override it"],
        ),
        (["fit", "--config", "CONFIG", "stray"], ["'stray' is not an option"]),
        (["fit", "--config", "tiny.yml"], ["cannot read tiny.yml", "did you mean: tiny.yaml"]),
        (["fit"], ["no model is given", "--config FILE"]),
        (["fit", "--model", "Data2Vec"], ["no data is given"]),
        (["fti"], ["'fti' is not a command", "fit, validate, test, predict"]),
        ([], ["say first what to do"]),
        (["predict", "--config", "CONFIG", "--ckpt_path", "last"], ["predict needs a file"]),
    ],
)
def test_a_mistake_on_the_command_line_is_named(
    args: list[str], expected: list[str], config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = fails(capsys, 2, *[config if word == "CONFIG" else word for word in args])
    for words in expected:
        assert words in printed
    assert len(printed.splitlines()) <= 5


def test_yaml_that_does_not_parse_is_named_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.yaml").write_text("model:\n  class_path: Data2Vec\n bad: 1\n")
    assert "bad.yaml:3 is not valid YAML" in fails(capsys, 2, "fit", "--config", "bad.yaml")


def test_what_a_constructor_or_the_data_refuses_is_one_line(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = fails(capsys, 1, "fit", "--config", config, "--model.optimization.lr", "-1")
    assert printed == "error: lr is -1.0: it must not be negative\n"
    for key, said in (("model.student.backbone.encoder", "is 0x0: both sides must be"), ("data", "0: permitted is")):
        printed = fails(capsys, 1, "fit", "--config", config, f"--{key}.patch_size", "0")
        assert printed.startswith(f"error: patch_size {said} 1")
        assert len(printed.splitlines()) == 1
    printed = fails(capsys, 1, "fit", "--config", config, "--data.dataset", "null", "--data.root", "nowhere")
    assert printed.startswith("error: nowhere is not a folder")
    assert len(printed.splitlines()) == 1


@pytest.mark.parametrize("name", ["digits", "digits_v2"])
def test_what_a_part_of_any_student_refuses_is_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each class that a student may be is tried: of interest is what the one that was asked for says."""
    config = str(ROOT / "configs" / "quickstart" / f"{name}.yaml")
    printed = fails(capsys, 1, "fit", "--config", config, "--model.student.backbone.encoder.patch_size", "3")
    assert printed.startswith("error: image_size 8x8 is not a whole number of patches of 3x3")
    assert len(printed.splitlines()) == 1


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "mask_noise_std: 0.01",
            "mask_noise_sdt: 0.01",
            ["unknown key 'mask_noise_sdt'", "did you mean: mask_noise_std"],
        ),
        ("mask_noise_std: 0.01", "mask_noise_std: abc", ["mask_noise_std cannot be 'abc'", "it must be a number"]),
        ("masking: inverse_blocks", "maskin: blocks", ["unknown key 'maskin'", "data.datamodules.image.maskin"]),
        ("{image: 1, text: 1}", "{image: 1, text: x}", ["data.turns", "{'image': 1, 'text': 'x'}"]),
    ],
)
def test_a_mistake_in_one_of_several_modalities_is_named(
    old: str, new: str, expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "configs" / "pretrain" / "image_text.yaml").read_text().replace(old, new, 1)
    (tmp_path / "bad.yaml").write_text(text)
    printed = fails(capsys, 2, "fit", "--config", "bad.yaml")
    line = text[: text.index(new)].count("\n") + 1
    for words in (*expected, f"bad.yaml:{line}, "):
        assert words in printed
    assert len(printed.splitlines()) <= 4


def test_a_mistake_in_a_modality_on_the_command_line_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    config = str(ROOT / "configs" / "pretrain" / "image_text.yaml")
    printed = fails(capsys, 2, "fit", "--config", config, "--data.datamodules.image.rot", "x")
    assert "unknown key 'rot'" in printed
    assert "did you mean: root" in printed


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


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_help_is_short_and_its_options_exist(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("--help", "--help_all"):
        with pytest.raises(SystemExit) as stopped:
            cli.main([command, word])
        assert not stopped.value.code
    short, _, full = capsys.readouterr().out.partition("\nusage: ")
    assert len(short.splitlines()) < 25
    assert short.count(f"python cli.py {command} ") == 2
    for option in re.findall(r"--\w+(?:\.[a-z_]+)?\b", short):
        if (
            option not in ("--help_all", "--trainer", "--model", "--data", "--model_checkpoint")
            and "--data." not in option
        ):
            assert option in full or option.startswith("--model."), option


def test_print_config_is_a_configuration(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (config, str(tmp_path / "printed.yaml")):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["fit", "--config", path, "--model.optimization.lr", "0.5", "--print_config"])
        assert not stopped.value.code
        printed = capsys.readouterr().out
        (tmp_path / "printed.yaml").write_text(printed)
    settings = yaml.safe_load(printed)
    assert settings["model"]["init_args"]["optimization"]["init_args"]["lr"] == 0.5
    assert settings["seed_everything"] == 0


# ---- a run and its folder ------------------------------------------------------------------------------------------


def weights(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


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


def test_the_last_checkpoint_is_the_end_of_the_run(
    config: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    cli.main(["fit", "--config", config, "--trainer.max_steps", "3", "--model_checkpoint.every_n_train_steps", "2"])
    said = caplog.text + "".join(str(warning.message) for warning in recwarn)
    assert "3 optimiser steps" in said  # our own line
    assert not re.search("litlogger|in eval mode", said)
    last = torch.load(tmp_path / "runs" / "tiny" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 3


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
    assert "holds another run" in fails(capsys, 2, "fit", "--config", config)
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
