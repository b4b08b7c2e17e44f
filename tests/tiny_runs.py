"""Settings, a model and a checkpoint of runs that take milliseconds, and what a command line that must fail prints."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import cli
from d2v_lightning import (
    Backbone,
    Data2Vec,
    EMATeacher,
    ImageEncoder,
    LinearDecoder,
    MaskTokenStudent,
    Optimization,
    RegressionLoss,
    Targets,
    Transformer,
)

ROOT = Path(__file__).parents[1]


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


def weights(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def model() -> Data2Vec:
    backbone = Backbone(ImageEncoder(8, 4, 1, 8), Transformer(8, 1, 2))
    student = MaskTokenStudent(backbone, LinearDecoder(8))
    return Data2Vec(student, Targets(1), RegressionLoss(), EMATeacher(), Optimization())


def checkpoint() -> dict[str, Any]:
    """A good checkpoint, as Lightning writes them."""
    module = model()
    content: dict[str, Any] = {"state_dict": module.state_dict(), "pytorch-lightning_version": "2.6.4"}
    module.on_save_checkpoint(content)
    data = {"class_path": "datamodules.ImageDataModule", "init_args": {"dataset": "digits", "num_workers": 0}}
    content["run"] = {"data": data, "trainer": {"max_steps": 1}}
    return copy.deepcopy(content)
