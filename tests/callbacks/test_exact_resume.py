"""From whatever checkpoint a run goes on, and however often, it ends as the one that was never stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from stopped_runs import assert_same
from tiny import Blobs, loader, tiny_model, trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from d2v_lightning import Optimization
from d2v_lightning.callbacks import ExactResume
from d2v_lightning.flavour import pl
from datamodules.shared.loader import resume_exactly

FIVE = 40  # pictures: five batches of 8


class Everywhere(pl.callbacks.Checkpoint):
    """A checkpoint at every hook from which one may be written, and a note of what the run did."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.saved: list[Path] = []
        self.did: list[tuple[Any, ...]] = []

    def save(self, trainer: pl.Trainer, hook: str) -> None:
        path = self.folder / f"{len(self.saved)}_{hook}.ckpt"
        trainer.save_checkpoint(path)
        self.saved.append(path)

    def note(self, trainer: pl.Trainer, *what: Any) -> None:
        # `_batches_that_stepped` is what loggers take for the step
        logged_at = trainer.fit_loop.epoch_loop._batches_that_stepped
        self.did.append((trainer.current_epoch, trainer.global_step, logged_at, *what))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.save(trainer, "epoch_start")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.note(trainer, batch_idx, batch["index"].tolist(), float(outputs["loss"]).hex())
        self.save(trainer, "batch_end")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.save(trainer, "validation_start")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.note(trainer, "validation", float(trainer.callback_metrics["val/loss"]).hex())
            self.save(trainer, "validation_end")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.note(trainer, "epoch end")
        self.save(trainer, "epoch_end")


class Loaders(pl.LightningDataModule):
    """New ones whenever it is asked."""

    def train_dataloader(self) -> Any:
        return loader(FIVE)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Blobs(8), batch_size=4)


def run(
    folder: Path, resumed: Path | None = None, callbacks: Sequence[pl.Callback] = (), **options: Any
) -> tuple[Everywhere, dict[str, Any]]:
    """What happened, and the checkpoint of the end."""
    everywhere = Everywhere(folder)
    settings: dict[str, Any] = {"max_steps": -1, "max_epochs": 3, "num_sanity_val_steps": 1, **options}
    model = tiny_model()
    model.optimization = Optimization(lr=1e-3, schedule="constant", warmup=2)
    if resumed is not None:
        torch.manual_seed(99)  # a resumed process may start from any random state
    runner = trainer([everywhere, *callbacks], folder=folder, **settings)
    runner.fit(model, Loaders(), ckpt_path=resumed)
    runner.save_checkpoint(folder / "end.ckpt")
    return everywhere, torch.load(folder / "end.ckpt", weights_only=True)


# Options of the Trainer, and where each run of a chain is left: a hook, and how often it has come by then in that run.
CHAINS: list[tuple[dict[str, Any], list[tuple[str, int]]]] = [
    ({}, [("batch_end", 5), ("batch_end", 5), ("validation_end", 1)]),
    ({}, [("epoch_start", 2), ("validation_start", 1), ("batch_end", 2)]),
    # windows of 2, 2 and 1 batches; validated in the middle of one
    ({"accumulate_grad_batches": 2, "val_check_interval": 3}, [("batch_end", 4), ("epoch_end", 1), ("batch_end", 4)]),
    ({"limit_train_batches": 3, "accumulate_grad_batches": 2}, [("batch_end", 2), ("batch_end", 1), ("epoch_end", 1)]),
    ({"limit_train_batches": 0.8, "check_val_every_n_epoch": 2}, [("batch_end", 4), ("batch_end", 4)]),
    # of five batches three an epoch: a loader that is made anew does not give the rest of the five
    (
        {"limit_train_batches": 3, "reload_dataloaders_every_n_epochs": 2, "max_epochs": 5},
        [("batch_end", 5), ("epoch_start", 2), ("batch_end", 4)],
    ),
    ({"max_epochs": -1, "max_steps": 13}, [("batch_end", 5), ("batch_end", 5), ("epoch_end", 1)]),
]


@pytest.mark.parametrize(("options", "leave"), CHAINS)
def test_a_chain_of_resumes_is_the_unbroken_run(
    tmp_path: Path, options: dict[str, Any], leave: list[tuple[str, int]]
) -> None:
    whole, expected = run(tmp_path / "whole", **options)
    last = whole
    for hop, (hook, times) in enumerate(leave):
        left = [path for path in last.saved if path.stem.endswith(hook)][times - 1]
        last, end = run(tmp_path / str(hop), left, **options)
        assert_same(end, expected)
        assert last.did == whole.did[len(whole.did) - len(last.did) :], f"from {left.name}, resume {hop + 1}"


def test_a_checkpoint_between_two_optimiser_steps_is_of_the_first_of_them(tmp_path: Path) -> None:
    options = {"accumulate_grad_batches": 2, "val_check_interval": 3, "max_epochs": 2}
    whole, expected = run(tmp_path / "whole", **options)
    within = next(path for path in whole.saved if path.stem.endswith("validation_end"))
    again, end = run(tmp_path / "again", within, **options)
    assert_same(end, expected)
    assert [row[3] for row in again.did[:3]] == [2, "validation", 3]
    assert again.did == whole.did[2:]


def test_an_epoch_that_a_run_stopped_in_is_finished(tmp_path: Path) -> None:
    """`fit` counts it as done wherever it stops."""
    whole, expected = run(tmp_path / "whole")
    for steps in (5, 7):
        run(tmp_path / f"{steps}", max_steps=steps, max_epochs=-1)
        again, end = run(tmp_path / f"from{steps}", tmp_path / f"{steps}" / "end.ckpt")
        assert again.did == whole.did[len(whole.did) - len(again.did) :]
        assert_same(end, expected)


def test_a_batch_that_failed_comes_again(tmp_path: Path) -> None:
    class Fail(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 3:
                raise RuntimeError("a fault")

        def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
            trainer.save_checkpoint(tmp_path / "fault.ckpt")

    options = {"accumulate_grad_batches": 2, "max_epochs": 2}
    whole, expected = run(tmp_path / "whole", **options)
    with pytest.raises(RuntimeError, match="a fault"):
        run(tmp_path / "part", callbacks=[Fail()], **options)
    again, end = run(tmp_path, tmp_path / "fault.ckpt", **options)
    assert again.did == whole.did[len(whole.did) - len(again.did) :]
    assert_same(end, expected)


class Foreign(pl.LightningModule):
    """A module that knows nothing of this project and asks for the length of the run."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 1)
        self.seen: list[list[int]] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.seen.append(batch["index"].tolist())
        return self.layer(batch["inputs"].flatten(1)).square().mean()

    def configure_optimizers(self) -> Any:
        assert self.trainer.estimated_stepping_batches > 0
        return torch.optim.SGD(self.parameters(), 0.1)


class Data(pl.LightningDataModule):
    """As our datamodules."""

    def setup(self, stage: str) -> None:
        resume_exactly(self.trainer)

    def train_dataloader(self) -> Any:
        return loader(FIVE)


def test_our_data_resumes_exactly_under_a_module_of_your_own(tmp_path: Path) -> None:
    def again(steps: int, resumed: Path | None = None) -> list[list[int]]:
        module = Foreign()
        runner = trainer([], steps, tmp_path, max_epochs=3)
        runner.fit(module, Data(), ckpt_path=resumed)
        assert sum(isinstance(callback, ExactResume) for callback in runner.callbacks) == 1  # type: ignore[attr-defined]
        runner.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return module.seen

    whole = again(-1)
    assert len(whole) == 15
    assert again(7) + again(-1, tmp_path / "7.ckpt") == whole
