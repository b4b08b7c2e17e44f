"""Batches: what a plain loader gives becomes one, what is missing is named, and the hook of a subclass stays its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from d2v_lightning.flavour import pl
from d2v_lightning.support.errors import UserError
from d2v_lightning.types import TakesPlainBatches, as_batch, require


def test_inputs_alone_or_with_labels_become_a_batch() -> None:
    inputs, labels = torch.zeros(2, 3), torch.ones(2)
    for given in (inputs, (inputs,), [inputs]):
        batch = as_batch(given)
        assert list(batch) == ["inputs"]
        assert batch["inputs"] is inputs
    batch = as_batch([inputs, labels])
    assert list(batch) == ["inputs", "labels"]
    assert batch["labels"] is labels


@pytest.mark.parametrize("given", [{"inputs": 1}, [torch.zeros(1), "text"], (torch.zeros(1),) * 3, [], None])
def test_anything_else_stays_as_it_is(given: Any) -> None:
    assert as_batch(given) is given


def test_all_that_is_missing_is_named() -> None:
    require({"inputs": 1, "mask": 2}, "inputs", "mask", remedy="none")
    with pytest.raises(UserError, match=r"^the batch has no 'mask' and no 'labels': set data.task$"):
        require({"inputs": 1}, "inputs", "mask", "labels", remedy="set data.task")
    with pytest.raises(UserError, match="has no 'inputs'"):
        require(torch.zeros(1), "inputs", remedy="")


def test_a_module_and_its_callbacks_see_a_batch_and_the_public_hook_stays_free() -> None:
    seen: list[Any] = []

    class Module(TakesPlainBatches, pl.LightningModule):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return [part + 1 for part in batch]

        def predict_step(self, batch: Any, batch_idx: int) -> None:
            seen.append(batch)

    class Look(pl.Callback):
        def on_predict_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *_: Any) -> None:
            seen.append(batch)

    loader = DataLoader(TensorDataset(torch.zeros(2, 3), torch.arange(2)), batch_size=2)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[Look()])
    trainer.predict(Module(), loader, return_predictions=False)
    assert len(seen) == 2
    for batch in seen:
        assert batch["inputs"].tolist() == [[1.0] * 3] * 2
        assert batch["labels"].tolist() == [1, 2]
