"""Runs of a few steps, made once, and settings of another in an empty folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import CLASSIFY, PRETRAIN, write

import cli


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def config(tmp_path: Path) -> str:
    return write(tmp_path / "tiny.yaml", PRETRAIN)


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of four steps, with checkpoints of step 2 and 4."""
    folder = tmp_path_factory.mktemp("pretrained")
    path = write(folder / "tiny.yaml", PRETRAIN)
    keep = ["--model_checkpoint.every_n_train_steps", "2", "--model_checkpoint.save_top_k", "-1"]
    cli.main(["fit", "--config", path, "--trainer.default_root_dir", str(folder / "run"), *keep])
    return folder / "run"


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    path = write(folder / "classify.yaml", CLASSIFY)
    cli.main(["fit", "--config", path, "--trainer.default_root_dir", str(folder / "run")])
    return folder / "run" / "checkpoints" / "last.ckpt"
