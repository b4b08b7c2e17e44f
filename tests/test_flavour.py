"""A program on `lightning` and one on `pytorch_lightning` do the same: they train, go on and fine-tune."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from d2v_lightning import flavour

ROOT = Path(__file__).parents[1]
PACKAGES = ["pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"]
UTILITIES = "class utilities:\n    rank_zero_info = rank_zero_only = rank_zero_warn = __name__\n"
PROGRAM = """
import sys
import torch
import {package} as L
from {module}.callbacks import ModelCheckpoint
from d2v_lightning import ImageClassifier, load_backbone
from tiny import loader, tiny_model

folder = sys.argv[1]
quiet = dict(accelerator="cpu", logger=False, enable_progress_bar=False)
keeper = ModelCheckpoint(folder, save_last=True, every_n_train_steps=2)
L.Trainer(max_steps=2, callbacks=[keeper], **quiet).fit(tiny_model(), loader())
gone_on = tiny_model(seed=1)
L.Trainer(max_steps=4, default_root_dir=folder, **quiet).fit(gone_on, loader(), ckpt_path=folder + "/last.ckpt")
L.seed_everything(0)
tuned = ImageClassifier(num_classes=4, backbone=load_backbone(folder + "/last.ckpt"), mixup=0.0, cutmix=0.0)
labelled = [{{"inputs": torch.rand(4, 1, 8, 8), "labels": torch.arange(4)}}] * 2
pictures = torch.utils.data.DataLoader(labelled, batch_size=None)
L.Trainer(max_steps=2, enable_checkpointing=False, **quiet).fit(tuned, pictures)
torch.save([gone_on.state_dict(), tuned.state_dict()], folder + "/end.pt")
"""


def program(package: str) -> str:
    return PROGRAM.format(package=package, module="lightning.pytorch" if package == "lightning" else package)


@pytest.mark.skipif(importlib.util.find_spec("lightning") is None, reason="needs the package lightning")
def test_a_program_on_either_lightning_trains_and_goes_on_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = flavour.pl.__name__.partition(".")[0]
    elsewhere = "lightning" if here == "pytorch_lightning" else "pytorch_lightning"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))}
    folders = {package: str(tmp_path / package) for package in (here, elsewhere)}
    for folder in folders.values():
        os.mkdir(folder)
    command = [sys.executable, "-c", program(elsewhere), folders[elsewhere]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(sys, "argv", ["program", folders[here]])
    exec(program(here), {})
    ours, theirs = (torch.load(f"{folder}/end.pt") for folder in folders.values())
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("sys", PACKAGES[:2]),
        ("pytorch_lightning", PACKAGES[:2]),
        ("lightning.pytorch", PACKAGES[2:]),
        ("lightning.pytorch, pytorch_lightning", PACKAGES[2:]),
        ("pytorch_lightning, lightning.pytorch", PACKAGES[:2]),
    ],
)
def test_the_name_that_is_imported_first_is_taken(before: str, expected: list[str], tmp_path: Path) -> None:
    """With packages that hold nothing else, in a process of their own."""
    for package in PACKAGES:
        folder = tmp_path / package.replace(".", "/")
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(UTILITIES)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import {before}, runpy; "
        f"found = runpy.run_path({flavour.__file__!r}); "
        "print(found['pl'].__name__, found['fabric'].__name__, found['rank_zero_warn'])"
    )
    printed = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == [*expected, expected[0]]


def test_the_other_lightning_is_said_to_come_too_late(tmp_path: Path) -> None:
    for name in ("pytorch_lightning", "lightning", "lightning/pytorch", "lightning_fabric"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(UTILITIES)
    code = f"import sys, runpy; sys.path.insert(0, {str(tmp_path)!r}); runpy.run_path({flavour.__file__!r}); "
    done = subprocess.run(
        [sys.executable, "-S", "-c", code + "import lightning.pytorch"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "UserWarning: modules of d2v_lightning belong to pytorch_lightning" in done.stderr
    assert "import lightning.pytorch before d2v_lightning" in done.stderr
