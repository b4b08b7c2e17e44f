"""A run that stops anywhere goes on with exactly the batches of the uninterrupted one."""

from __future__ import annotations

import os
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from d2v_lightning.callbacks import ExactResume
from d2v_lightning.flavour import pl
from datamodules.shared.loader import ResumableLoader
from datamodules.shared.samplers import EpochBatchSampler, derived_seed, seeded

SAMPLES, BATCH = 23, 3  # seven batches an epoch, an odd number, and two samples over


class Noise(Dataset[dict[str, Any]]):
    """Augmentation in its purest form."""

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        with seeded(derived_seed("augmentation", 0, *key)):
            return {
                "inputs": torch.rand(4),
                "key": key,
                "unreadable": [f"file {key[1]}: torn"] if key[1] in (4, 9) else [],
            }


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "inputs": torch.stack([sample["inputs"] for sample in samples]),
        "key": [sample["key"] for sample in samples],
        "unreadable": [entry for sample in samples for entry in sample["unreadable"]],
    }


def loader(num_workers: int = 0, endless: bool = False, shuffle: bool = True) -> ResumableLoader:
    sampler = EpochBatchSampler(SAMPLES, BATCH, seed=5, shuffle=shuffle)
    return ResumableLoader(Noise(), sampler, collate, num_workers, endless=endless)


class Recorder(pl.LightningModule):
    """Dropout, so that a loader that draws from the global generator would show in the weights."""

    def __init__(self, num_workers: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        self.num_workers = num_workers
        self.seen: list[Any] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        torch.manual_seed(self.global_step * 100 + batch_idx)
        self.seen.append((batch_idx, batch["key"], batch["inputs"].sum().item()))
        assert "unreadable" not in batch
        return self.layer(batch["inputs"]).square().mean()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.log("val", batch["inputs"].mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)

    def train_dataloader(self) -> ResumableLoader:
        return loader(self.num_workers, endless=True)

    def val_dataloader(self) -> ResumableLoader:
        return loader(shuffle=False)

    def configure_callbacks(self) -> list[pl.Callback]:
        return [ExactResume()]


def fit(
    max_steps: int, workers: int = 0, accumulate: int = 1, ckpt_path: Path | None = None, **options: Any
) -> Recorder:
    torch.manual_seed(0)
    module = Recorder(workers)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=1,
        **options,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\d+ unreadable")
        trainer.fit(module, ckpt_path=ckpt_path)
    return module


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("workers", "workers_after"), [(0, 0), (2, 0), (0, 2), (2, 2)])
def test_resume_is_exact(workers: int, workers_after: int, accumulate: int, tmp_path: Path) -> None:
    whole = fit(max_steps=10, accumulate=accumulate)
    stops = (1, 4, 6, 7, 8) if workers == workers_after == 0 else (3,)
    for stop in stops:
        path = tmp_path / f"{stop}.ckpt"
        first = fit(stop, workers, accumulate)
        first.trainer.save_checkpoint(path)
        second = fit(10, workers_after, accumulate, path)
        assert first.seen + second.seen == whole.seen, f"stopped after {stop} steps"
        for name, parameter in second.named_parameters():
            assert torch.equal(parameter, whole.get_parameter(name))


def test_signals_to_all_processes_leave_the_workers_to_the_one_that_trains() -> None:
    """The step that is running may still need batches."""
    data = loader(num_workers=1)
    batches = iter(data)
    next(batches)
    (worker,) = data._iterator._workers
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(worker.pid, number)
    assert 1 + len(list(batches)) == len(data)
    assert worker.is_alive()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises where a loading process is killed
    worker.terminate()  # as multiprocessing does at the end of the program, with those that hang
    worker.join(timeout=60)
    assert worker.exitcode == -signal.SIGKILL


def test_resume_is_exact_with_limited_epochs(tmp_path: Path) -> None:
    whole = fit(max_steps=11, limit_train_batches=4)
    for stop in (3, 4, 6, 8):
        first = fit(stop, limit_train_batches=4)
        first.trainer.save_checkpoint(tmp_path / "stopped.ckpt")
        second = fit(11, ckpt_path=tmp_path / "stopped.ckpt", limit_train_batches=4)
        assert first.seen + second.seen == whole.seen, f"stopped after {stop} steps"


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resume_at_the_end_of_an_epoch_without_validation(accumulate: int, tmp_path: Path) -> None:
    whole = fit(max_steps=10, accumulate=accumulate, limit_val_batches=0)
    for stop in (4, 7):
        first = fit(stop, 0, accumulate, limit_val_batches=0)
        first.trainer.save_checkpoint(tmp_path / "stopped.ckpt")
        second = fit(10, 0, accumulate, tmp_path / "stopped.ckpt", limit_val_batches=0)
        assert first.seen + second.seen == whole.seen, f"stopped after {stop} steps"
        assert torch.equal(second.layer[0].weight, whole.layer[0].weight)


@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_overfit_batches_are_the_same_ones_in_every_epoch() -> None:
    seen = [(keys, inputs) for _, keys, inputs in fit(max_steps=6, overfit_batches=2).seen]
    assert seen == 3 * [(keys, inputs) for _, keys, inputs in fit(max_steps=2).seen]


def test_epochs_follow_each_other_without_gap_or_repetition() -> None:
    seen = [key for _, keys, _ in fit(max_steps=14).seen for key in keys]
    assert [epoch for epoch, _ in seen] == [0] * 21 + [1] * 21
    assert len(set(seen)) == 42
    assert [index for _, index in seen[:21]] != [index for _, index in seen[21:]]


def keys(batches: Any) -> list[Any]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\d+ unreadable")
        return [batch["key"] for batch in batches]


def test_in_a_loop_of_ones_own_the_rest_of_the_epoch_comes_then_the_next() -> None:
    original = loader()
    epochs = []
    for epoch in range(3):
        original.sampler.set_epoch(epoch)
        epochs.append(keys(original))
    assert [len(epoch) for epoch in epochs] == [7, 7, 7]

    interrupted = loader()
    interrupted.sampler.set_epoch(1)
    iterator = iter(interrupted)
    assert [next(iterator)["key"] for _ in range(3)] == epochs[1][:3]
    state = interrupted.state_dict()

    resumed = loader(num_workers=2)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert len(resumed) == 7
    resumed.sampler.set_epoch(1)
    assert keys(resumed) == epochs[1][3:]
    resumed.sampler.set_epoch(2)
    assert keys(resumed) == epochs[2]


def test_a_loader_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    keys(loader())
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluation_begins_at_the_beginning_each_time() -> None:
    evaluation = loader(shuffle=False)
    next(iter(evaluation))
    assert keys(evaluation) == keys(evaluation)
    assert [key for batch in keys(evaluation) for key in batch] == [(0, index) for index in range(SAMPLES)]


def test_changed_layout_is_said_on_resume() -> None:
    state = loader().state_dict()
    other = ResumableLoader(Noise(), EpochBatchSampler(SAMPLES, 4, seed=5), collate)
    with pytest.warns(UserWarning, match=r"batch_size 3 -> 4: the rest of this epoch"):
        other.load_state_dict(state)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_unreadable_files_are_counted_and_named_in_one_warning(num_workers: int) -> None:
    evaluation = loader(num_workers, shuffle=False)
    with pytest.warns(UserWarning, match="unreadable") as caught:
        batches = list(evaluation)
    (warning,) = [entry for entry in caught if "unreadable" in str(entry.message)]
    assert "2 unreadable file(s) left out" in str(warning.message)
    assert "file 4: torn; file 9: torn" in str(warning.message)
    assert all("unreadable" not in batch for batch in batches)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(evaluation)


def test_unreadable_files_are_named_where_a_run_stops_early() -> None:
    iterator = iter(loader(shuffle=False))
    next(iterator), next(iterator)
    with pytest.warns(UserWarning, match="1 unreadable.*file 4"):
        iterator.close()  # type: ignore[attr-defined]
