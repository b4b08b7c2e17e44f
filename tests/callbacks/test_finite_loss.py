"""A loss that is not finite: who is named, what is touched, what is saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import Blobs, loader, tiny_model, trainer

from d2v_lightning.callbacks import FiniteLoss, NonFiniteLossError
from d2v_lightning.callbacks.finite_loss import _Pending
from d2v_lightning.flavour import pl


def test_the_batch_is_named_before_the_weights_are_touched_and_nothing_is_saved_after(tmp_path: Path) -> None:
    bad, data, model = 37, loader(bad=37), tiny_model()
    order = [key for batch in data.sampler for key in batch]
    place = [index for _, index in order].index(bad) // 8
    keepers = [
        pl.callbacks.ModelCheckpoint(tmp_path / "steps", every_n_train_steps=1, save_top_k=-1, save_on_exception=True),
        pl.callbacks.OnExceptionCheckpoint(tmp_path / "exception"),
    ]
    callback = FiniteLoss()
    model.configure_callbacks = lambda: [model.ema_teacher, callback]  # type: ignore[method-assign]
    weights: list[torch.Tensor] = []
    # the last hook before the bad batch
    original = callback.on_train_batch_start

    def remember(*args: object) -> None:
        weights[:] = [parameter.detach().clone() for parameter in model.parameters()]
        original(*args)  # type: ignore[arg-type]

    callback.on_train_batch_start = remember  # type: ignore[method-assign, assignment]
    with pytest.raises(NonFiniteLossError) as error:
        trainer([callback, *keepers], 20, tmp_path).fit(model, data)
    message = str(error.value)
    assert f"epoch 0, batch {place}, optimiser step {place + 1}" in message
    assert f"inputs that are not finite: samples {bad}." in message
    assert "lower learning rate" in message
    for before, after in zip(weights, model.parameters(), strict=True):
        assert torch.equal(before, after)
        assert torch.isfinite(after).all()
    assert len(list(tmp_path.rglob("*.ckpt"))) == place  # one for each good step


def test_all_samples_are_named_where_inputs_are_fine() -> None:
    batch = {"inputs": torch.zeros(20, 1, 8, 8), "index": torch.arange(100, 120)}
    with pytest.raises(NonFiniteLossError, match=r"loss is inf at step 3; samples 100, .*, 115 and 4 more"):
        _Pending(torch.tensor(float("inf")), "step 3", batch).check()


def test_what_is_pending_is_looked_at_before_a_checkpoint_is_written(tmp_path: Path) -> None:
    """The case of a GPU, where the flag of a step is looked at one step late."""
    runner = trainer([pl.callbacks.ModelCheckpoint(tmp_path, save_on_exception=True)], 2, tmp_path)
    runner.fit(tiny_model(), loader())
    callback = next(callback for callback in runner.callbacks if isinstance(callback, FiniteLoss))  # Data2Vec's own
    files = sorted(tmp_path.rglob("*.ckpt"))
    callback._pending = _Pending(torch.tensor(float("nan")), "epoch 0, batch 1, optimiser step 2", {})
    with pytest.raises(NonFiniteLossError, match="optimiser step 2"):
        runner.save_checkpoint(tmp_path / "polluted.ckpt")
    assert sorted(tmp_path.rglob("*.ckpt")) == files
    assert not runner.checkpoint_callbacks


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_run_stops_one_step_late_and_saves_nothing(tmp_path: Path) -> None:
    keeper = pl.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, save_on_exception=True)
    with pytest.raises(NonFiniteLossError):
        trainer([FiniteLoss(), keeper], 20, tmp_path, accelerator="gpu", devices=1).fit(tiny_model(), loader(bad=37))
    for path in tmp_path.rglob("*.ckpt"):
        for tensor in torch.load(path, weights_only=True)["state_dict"].values():
            assert torch.isfinite(tensor).all()


def test_finite_losses_pass(tmp_path: Path) -> None:
    runner = trainer([FiniteLoss()], 3, tmp_path)
    runner.fit(tiny_model(), loader(len(Blobs())))
    assert runner.global_step == 3
