"""Runs that stop and go on, for tests that a resumed one is the uninterrupted one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from d2v_lightning.flavour import pl


def run(
    model: Any, data: Any, folder: Path, resumed: Path | None = None, **options: Any
) -> tuple[list[float], dict[str, Any]]:
    """Losses and last checkpoint of three epochs, two batches an optimiser step, with a checkpoint after each step."""
    losses: list[float] = []

    class Losses(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            losses.append(float(outputs["loss"]))

    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 3,
        "accumulate_grad_batches": 2,
        "callbacks": [
            Losses(),
            pl.callbacks.ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1),
        ],
        "use_distributed_sampler": False,
        "limit_val_batches": 0,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(**{**settings, **options})
    trainer.fit(model, data, ckpt_path=resumed, weights_only=True)
    trainer.save_checkpoint(folder / "end.ckpt")
    return losses, torch.load(folder / "end.ckpt", weights_only=True)


def assert_chain_is_exact(
    again: Callable[[Path, Path | None], tuple[list[float], dict[str, Any]]], folder: Path, steps: tuple[int, ...]
) -> list[float]:
    """Go on from checkpoints of runs that themselves went on; compare each with the unbroken run and return its losses.

    Args:
        again: (folder, checkpoint to go on from) -> what `run` returns. It is called with None for the unbroken run.
        folder: for all of it.
        steps: at which each run is left for the next one.
    """
    before = folder / "whole"
    whole, expected = again(before, None)
    for step in steps:
        saved = before / f"step={step}.ckpt"
        done = torch.load(saved, weights_only=True)["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"][
            "processed"
        ]
        before = folder / f"from{step}"
        losses, end = again(before, saved)
        assert losses == whole[done:], f"after step {step} of {steps}"
        assert_same(end, expected)
    return whole


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Weights, teacher, optimiser, schedule, the places of loops and loaders: bit for bit."""
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch", "loops"):
        differences = list(_differences(one[part], other[part], part))
        assert not differences, differences[:5]


def _differences(one: Any, other: Any, at: str) -> Any:
    if isinstance(one, torch.Tensor):
        if not torch.equal(one, other):
            yield at
    elif isinstance(one, dict) and isinstance(other, dict):
        for name in dict.fromkeys([*one, *other]):
            # What of a window and its validation is done again counts twice there, and nothing follows from it.
            if name not in ("zero_grad", "epoch_loop.val_loop.batch_progress"):
                yield from _differences(one.get(name), other.get(name), f"{at}.{name}")
    elif isinstance(one, (list, tuple)) and len(one) == len(other):
        for place, pair in enumerate(zip(one, other, strict=True)):
            yield from _differences(*pair, f"{at}[{place}]")
    elif one != other:
        yield f"{at}: {one} is not {other}"
