"""RunSummary: the line at the start, and what it counts."""

from __future__ import annotations

import importlib
import logging
from typing import Any

import pytest
import torch
from tiny import loader, tiny_model, trainer

from d2v_lightning.callbacks import RunSummary
from d2v_lightning.callbacks.run_summary import batch_size_of
from d2v_lightning.flavour import pl

BoringModel = importlib.import_module(f"{pl.__name__}.demos.boring_classes").BoringModel


class Data(pl.LightningDataModule):
    batch_size = 16

    def train_dataloader(self) -> Any:
        return loader(64, 16)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "effective batch" in record.getMessage()]


def test_summary_of_a_pretraining_run(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model()
    student = sum(parameter.numel() for parameter in model.student.parameters())
    teacher = sum(parameter.numel() for parameter in model.teacher.parameters())
    with caplog.at_level(logging.INFO):
        trainer([RunSummary()], 2, accumulate_grad_batches=2).fit(model, datamodule=Data())
    assert said(caplog) == [
        f"data2vec: {student / 1e3:.1f} k student parameters (+ {teacher / 1e3:.1f} k teacher), "
        "effective batch 32 = 16 per device x 1 device x 2 accumulated, 2 optimiser steps, 32-true"
    ]


def test_summary_of_any_module_takes_the_first_batch(caplog: pytest.LogCaptureFixture) -> None:
    model = BoringModel()
    model.layer.bias.requires_grad_(False)
    with caplog.at_level(logging.INFO):
        trainer([RunSummary()], 3).fit(model, torch.utils.data.DataLoader(torch.randn(30, 32), batch_size=5))
    assert said(caplog) == [
        "BoringModel: 66 parameters (64 trained), effective batch 5 = 5 per device x 1 device x 1 accumulated, "
        "3 optimiser steps, 32-true"
    ]


def test_samples_in_a_batch() -> None:
    assert batch_size_of({"mask": torch.zeros(2), "inputs": torch.zeros(7, 1)}) == 7
    assert batch_size_of([torch.zeros(4, 2), torch.zeros(9)]) == 4
    assert batch_size_of({"text": ["a", "b"], "labels": torch.zeros(3)}) == 3
    assert batch_size_of(["a"]) is None
