"""Files record the public names of classes, so they outlive moves of the code, in both directions."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_runs import PRETRAIN, write

import cli
from d2v_lightning import Data2Vec
from d2v_lightning.commands import checkpoint as checkpoints

ROOT = Path(__file__).parents[1]
USE = """
import cli, sys
from pathlib import Path
import d2v_lightning.elsewhere
from d2v_lightning import Data2Vec
from d2v_lightning.commands import checkpoint

run, here = sys.argv[1:]
assert Data2Vec.__module__ == "d2v_lightning.elsewhere"
assert d2v_lightning.__file__.startswith(here)
last = run + "/checkpoints/last.ckpt"
Data2Vec.load_from_checkpoint(last)
Data2Vec.from_pretrained(last).save_pretrained(run + "/saved")
checkpoint.main(["inspect", last])
checkpoint.main(["export", last, "--out", run + "/theirs"])
cli.main(["fit", "--config", run + "/config.yaml", "--ckpt_path", last, "--trainer.max_steps", "3",
          "--trainer.default_root_dir", run + "/more"])
"""


def moved(folder: Path) -> Path:
    """A copy of the code in which the class Data2Vec stands in another file."""
    for name in ("d2v_lightning", "datamodules", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "cli.py", folder)
    (folder / "d2v_lightning/pretrain/data2vec.py").rename(folder / "d2v_lightning/elsewhere.py")
    for path in folder.rglob("*.py"):
        path.write_text(path.read_text().replace("d2v_lightning.pretrain.data2vec", "d2v_lightning.elsewhere"))
    return folder


def test_files_from_before_and_after_a_move_of_a_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, code = tmp_path / "run", moved(tmp_path / "code")
    path = write(tmp_path / "tiny.yaml", PRETRAIN)
    cli.main(["fit", "--config", path, "--trainer.max_steps", "2", "--trainer.default_root_dir", str(run)])
    environment = {**os.environ, "PYTHONPATH": str(code)}
    command = [sys.executable, "-P", "-c", USE, str(run), str(code)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Data2Vec" in done.stdout

    after = run / "more/checkpoints/last.ckpt"
    assert torch.load(after, weights_only=True)["hyper_parameters"]["class_path"] == "d2v_lightning.Data2Vec"
    state = Data2Vec.load_from_checkpoint(after).state_dict()
    for name, tensor in Data2Vec.from_pretrained(after).state_dict().items():
        assert torch.equal(tensor, state[name]), name
    Data2Vec.from_pretrained(run / "saved")
    checkpoints.main(["inspect", str(after)])
    assert "Data2Vec" in capsys.readouterr().out
    further = ["--trainer.max_steps", "4", "--trainer.default_root_dir", str(run / "further")]
    cli.main(["fit", "--config", str(run / "config.yaml"), "--ckpt_path", str(after), *further])
    assert torch.load(run / "further/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4


@pytest.mark.parametrize("kind", ["package", "file"])
def test_another_package_of_the_name_datamodules_is_refused_with_its_path(tmp_path: Path, kind: str) -> None:
    foreign = tmp_path / {"package": "datamodules/__init__.py", "file": "datamodules.py"}[kind]
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_text("")
    command = [sys.executable, "-m", "d2v_lightning.commands.features", "--help"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr == (
        f"error: {foreign if kind == 'file' else foreign.parent} hides the package datamodules of d2v_lightning: rename it, "
        "or start from another folder\n"
    )
