"""A run that is stopped goes on as if it had not been: losses, teacher, dropout, masks and order of the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from d2v_lightning import Data2Vec
from d2v_lightning.callbacks import SaveAtEnd
from d2v_lightning.flavour import pl
from datamodules import ImageDataModule

SMALL = {
    "student.backbone.encoder.dim": 24,
    "student.decoder.dim": 24,
    "student.backbone.transformer.dim": 24,
    "student.backbone.transformer.depth": 2,
    "student.backbone.transformer.num_heads": 2,
    "student.backbone.transformer.drop_path": 0.5,
    "student.backbone.transformer.attention_dropout": 0.3,
    "student.backbone.transformer.position_bias.num_heads": 2,
    "targets.average_top_k_layers": 1,
    "ema_teacher.anneal_steps": 7,
}


class Losses(pl.Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))


def run(
    folder: Path,
    stop_at: int,
    accumulate: int,
    workers: int,
    ckpt_path: Path | None = None,
    keep: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[list[float], Any]:
    """Train for `stop_at` optimiser steps of a schedule of 8, in epochs of 5 batches; losses and the final module.

    A checkpoint is written after every step, or by `ModelCheckpoint(**keep)` and at the end; `options` are the Trainer's.
    """
    pl.seed_everything(3 if ckpt_path is None else 99)  # a resumed process may start from any random state
    model = Data2Vec.from_recipe("digits", SMALL)
    model.configure_optimizers = lambda: model.optimization.configure(model, 8)  # type: ignore[method-assign]
    data = ImageDataModule.from_recipe("digits", {"batch_size": 64, "num_workers": workers})
    losses = Losses()
    every_step = [pl.callbacks.ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)]
    at_the_end = [SaveAtEnd(), pl.callbacks.ModelCheckpoint(folder, save_last=True, **(keep or {}))]
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "max_steps": stop_at,
        "max_epochs": -1,
        "limit_train_batches": 5,
        "limit_val_batches": 0,
        "accumulate_grad_batches": accumulate,
        "gradient_clip_val": 1.0,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": [losses, *(every_step if keep is None else at_the_end)],
    }
    trainer = pl.Trainer(**{**settings, **options})
    trainer.fit(model, data, ckpt_path=ckpt_path, weights_only=True)
    return losses.losses, model


@pytest.mark.parametrize(("accumulate", "workers"), [(1, 0), (2, 0), (2, 1)])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path: Path, accumulate: int, workers: int) -> None:
    whole, expected = run(tmp_path / "whole", 8, accumulate, workers)
    first, _ = run(tmp_path / "part", 3, accumulate, workers)
    saved = next((tmp_path / "part").glob("*step=3.ckpt"))
    second, resumed = run(tmp_path / "part", 8, accumulate, workers, ckpt_path=saved)
    assert first + second == whole
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


@pytest.mark.parametrize("keep", [{}, {"every_n_train_steps": 4}], ids=["every epoch", "every 4 steps"])
@pytest.mark.parametrize("validation", [0, 1])
def test_the_end_of_a_run_is_in_its_last_checkpoint_and_goes_on_exactly(
    tmp_path: Path, keep: dict[str, Any], validation: int
) -> None:
    """Wherever it ends: in the middle of an epoch (3), with one (5), between two checkpoints."""
    options: dict[str, Any] = {"keep": keep, "limit_val_batches": validation}
    whole, expected = run(tmp_path / "whole", 8, 1, 0, **options)
    for stop in (3, 5):
        first, _ = run(tmp_path / f"{stop}", stop, 1, 0, **options)
        last = tmp_path / f"{stop}" / "last.ckpt"
        assert torch.load(last, weights_only=True)["global_step"] == stop
        second, resumed = run(tmp_path / f"{stop}", 8, 1, 0, last, **options)
        assert first + second == whole, f"stopped after {stop} steps"
        for name, tensor in expected.state_dict().items():
            assert torch.equal(tensor, resumed.state_dict()[name]), name


@pytest.mark.parametrize("validation", [0, 1])
def test_a_finished_run_of_whole_epochs_goes_on_exactly_for_more(tmp_path: Path, validation: int) -> None:
    options: dict[str, Any] = {"keep": {}, "limit_val_batches": validation}
    whole, _ = run(tmp_path / "whole", -1, 2, 0, max_epochs=3, **options)
    first, _ = run(tmp_path / "part", -1, 2, 0, max_epochs=1, **options)
    second, _ = run(tmp_path / "part", -1, 2, 0, tmp_path / "part" / "last.ckpt", max_epochs=3, **options)
    assert first + second == whole


def test_a_model_made_in_python_loads_again_and_its_file_is_plain_data(tmp_path: Path) -> None:
    _, model = run(tmp_path, 1, 1, 0)
    path = next(tmp_path.glob("*.ckpt"))
    content = torch.load(path, weights_only=True)
    assert content["d2v_lightning"] == {"format_version": 2, "licence": None, "tokenizer": None}
    loaded = Data2Vec.load_from_checkpoint(path)
    assert loaded.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])
    assert not any(part.training for part in loaded.teacher.modules())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("d2v_lightning"), "not a checkpoint of d2v_lightning"),
        (lambda c: c["d2v_lightning"].update(format_version=99), "upgrade d2v_lightning"),
        (
            lambda c: c["d2v_lightning"].update(format_version=1),
            "has format 1, this version reads format 2: write it anew",
        ),
        (lambda c: c["d2v_lightning"].pop("format_version"), "not a whole checkpoint"),
        (lambda c: c.pop("state_dict"), "not a whole checkpoint"),
        (lambda c: c["hyper_parameters"].update(class_path="os.system"), "not a class of d2v_lightning"),
        (lambda c: c["hyper_parameters"]["init_args"].update(colour=1), "no argument named colour"),
        (lambda c: c["state_dict"].pop("student.mask_token"), "weights missing"),
    ],
)
def test_a_foreign_newer_or_incomplete_checkpoint_is_refused_in_one_line(
    tmp_path: Path, change: Any, message: str
) -> None:
    run(tmp_path, 1, 1, 0)
    path = next(tmp_path.glob("*.ckpt"))
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    with pytest.raises(ValueError, match=message) as error:
        Data2Vec.load_from_checkpoint(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("keep", [0, 100, 5000])
def test_a_truncated_file_is_refused_in_one_line(tmp_path: Path, keep: int) -> None:
    run(tmp_path, 1, 1, 0)
    path = next(tmp_path.glob("*.ckpt"))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"is damaged or no checkpoint|was not loaded") as error:
        Data2Vec.load_from_checkpoint(path)
    assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        Data2Vec.load_from_checkpoint(tmp_path / "missing.ckpt")
