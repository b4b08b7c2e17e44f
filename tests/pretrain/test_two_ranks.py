"""Two processes (gloo): equal teachers, the gradient of the whole batch, no hang on uneven data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from stopped_runs import assert_same
from tiny import image_batch, tiny_image_model
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from two_ranks import TwoRanks

from d2v_lightning import Data2Vec
from d2v_lightning.flavour import pl
from datamodules import ImageDataModule
from tests.pretrain.test_resume import SMALL

COUNTS = [9, 3, 12, 5]  # hidden patches of the four batches: rank 0 gets the even ones, rank 1 the odd ones


class PerRank(Dataset[dict[str, Tensor]]):
    """Batches `rank`, `rank` + 2, ... of the four."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.chosen = list(range(rank, len(COUNTS), world_size))

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        number = self.chosen[place]
        return image_batch(2, COUNTS[number], seed=number)


class Save(pl.Callback):
    """Each rank writes its weights when training ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        torch.save(pl_module.state_dict(), self.folder / f"rank{trainer.global_rank}.pt")


class Batches(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        assert self.trainer is not None
        return DataLoader(PerRank(self.trainer.global_rank, self.trainer.world_size), batch_size=None)


def trainer(folder: Path, devices: int, callbacks: Sequence[pl.Callback] = (), **options: Any) -> pl.Trainer:
    strategy: Any = "auto" if devices == 1 else TwoRanks()
    return pl.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=strategy,
        use_distributed_sampler=False,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Save(folder), *callbacks],
        **options,
    )


def test_two_ranks_with_unequal_counts_take_the_step_of_one_process(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    # Four batches make one optimiser step: two on each of two ranks, or four on one.
    trainer(tmp_path, 2, max_steps=1, accumulate_grad_batches=2).fit(tiny_image_model(), Batches())
    trainer(tmp_path / "one", 1, max_steps=1, accumulate_grad_batches=4).fit(tiny_image_model(), Batches())
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    one = torch.load(tmp_path / "one" / "rank0.pt", weights_only=True)
    for name, tensor in one.items():
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        torch.testing.assert_close(ranks[0][name], tensor, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("batch_size", [100])
def test_uneven_data_and_layer_drop_end_with_equal_teachers(tmp_path: Path, batch_size: int) -> None:
    pl.seed_everything(0)
    model = Data2Vec.from_recipe("digits", {**SMALL, "student.backbone.transformer.layer_drop": 0.3})
    data = ImageDataModule.from_recipe(
        "digits", {"batch_size": batch_size}
    )  # 1,297 samples: 12 batches and a remainder
    trainer(tmp_path, 2, max_epochs=1).fit(model, data)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    teacher = [name for name in ranks[0] if name.startswith("teacher.")]
    assert teacher
    for name in ranks[0]:
        assert torch.equal(ranks[0][name], ranks[1][name]), name


def test_two_ranks_go_on_exactly_within_an_epoch(tmp_path: Path) -> None:
    """Windows of 2 and 1 batches on each rank, left after the first window of the second epoch."""

    def run(name: str, resumed: Path | None = None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        pl.seed_everything(0)
        data = ImageDataModule.from_recipe("digits", {"batch_size": 16, "num_workers": 0})
        each = pl.callbacks.ModelCheckpoint(tmp_path / name, "{step}", every_n_train_steps=1, save_top_k=-1)
        options = {"max_epochs": 3, "limit_train_batches": 3, "accumulate_grad_batches": 2}
        (tmp_path / name).mkdir()
        trainer(tmp_path / name, 2, [each], **options).fit(
            Data2Vec.from_recipe("digits", SMALL), data, ckpt_path=resumed
        )
        ranks = [torch.load(tmp_path / name / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
        return torch.load(tmp_path / name / "step=6.ckpt", weights_only=True), ranks

    whole, expected = run("whole")
    end, ranks = run("again", tmp_path / "whole" / "step=3.ckpt")
    assert_same(end, whole)
    for found, wanted in zip(ranks, expected, strict=True):
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
