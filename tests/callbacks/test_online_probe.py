"""OnlineProbe: it sees what is there, and training does not see it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import Losses, loader, probe_loaders, tiny_model, trainer

from d2v_lightning.callbacks import OnlineProbe
from d2v_lightning.callbacks.without_side_effects import without_side_effects
from d2v_lightning.flavour import pl
from d2v_lightning.method.probing import pooled_features


class Drawing(list[Any]):
    """A loader that draws random numbers, as augmentation would."""

    def __iter__(self) -> Any:
        torch.rand(7)
        return super().__iter__()


def probe(**options: Any) -> OnlineProbe:
    callback = OnlineProbe(**options)
    train, test = probe_loaders()
    callback.loaders = Drawing(train), test
    return callback


def test_losses_are_the_same_bit_for_bit_with_and_without_it() -> None:
    losses = []
    for extra in ([], [probe(every_n_steps=2, linear=False)]):
        record, model = Losses(), tiny_model()
        model.configure_callbacks = lambda model=model: [model.ema_teacher]  # type: ignore[method-assign] # no StepSeed
        trainer([record, *extra], 6).fit(model, loader())
        losses.append(record.values)
        assert model.training
        assert not model.teacher.training
    assert losses[0] == losses[1]


def test_what_is_easy_to_see_is_found_and_logged() -> None:
    callback = probe(every_n_epochs=None, every_n_steps=3)
    runner = trainer([callback], 4)
    runner.fit(tiny_model(), loader())
    logged = {name: float(value) for name, value in runner.callback_metrics.items() if name.startswith("probe/")}
    assert set(logged) == {"probe/knn_teacher", "probe/linear_teacher", "probe/knn_student", "probe/linear_student"}
    assert min(logged.values()) > 0.9  # one half of the pictures is brighter on the left


def test_shuffled_labels_are_not_found() -> None:
    callback = probe(every_n_epochs=1, parts=["teacher"], linear=False)
    for batches in callback.loaders or ():
        for batch in batches:
            batch["labels"] = torch.randint(0, 8, (16,), generator=torch.Generator().manual_seed(0))
    runner = trainer([callback], 8)
    runner.fit(tiny_model(), loader())
    assert float(runner.callback_metrics["probe/knn_teacher"]) < 0.5


def test_features_of_the_student_are_those_of_the_backbone() -> None:
    model, runner = tiny_model(), trainer([], 1)
    inputs = probe_loaders()[0][0]["inputs"]
    expected = model.backbone.features(inputs, layers=[-1]).layers[0].mean(dim=1)
    with without_side_effects(runner, model):
        torch.testing.assert_close(pooled_features(model, inputs, None, "student"), expected)
        # before the first step the teacher is a copy
        torch.testing.assert_close(pooled_features(model, inputs, None, "teacher"), expected)
        model.teacher.transformer.blocks[1].mlp.fc2.weight.mul_(2.0)
        assert not torch.allclose(pooled_features(model, inputs, None, "teacher"), expected)


def test_a_run_without_data_for_it_is_refused_at_the_start() -> None:
    record = Losses()
    with pytest.raises(ValueError, match=r"probe_dataloaders\(\), or set probe.loaders"):
        trainer([OnlineProbe(), record], 4).fit(tiny_model(), loader())
    assert record.values == []
    with pytest.raises(ValueError, match="set one of them"):
        OnlineProbe(every_n_epochs=None)


def test_loaders_of_the_datamodule_are_used() -> None:
    class Data(pl.LightningDataModule):
        def train_dataloader(self) -> Any:
            return loader()

        def probe_dataloaders(self) -> Any:
            return probe_loaders()

    runner = trainer([OnlineProbe(every_n_steps=2, linear=False)], 2)
    runner.fit(tiny_model(), datamodule=Data())
    assert float(runner.callback_metrics["probe/knn_student"]) > 0.9


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_it_works_in_16_bit_runs_and_on_plain_tuples(precision: Any) -> None:
    callback = probe(every_n_epochs=None, every_n_steps=2)
    assert callback.loaders is not None
    callback.loaders = tuple([(batch["inputs"], batch["labels"]) for batch in part] for part in callback.loaders)
    runner = trainer([callback], 2, precision=precision)
    runner.fit(tiny_model(), loader())
    assert min(float(value) for name, value in runner.callback_metrics.items() if name.startswith("probe/")) > 0.9


def test_loaders_without_labels_are_refused() -> None:
    callback = probe(every_n_epochs=None, every_n_steps=1)
    callback.loaders = [torch.zeros(2, 1, 8, 8)], [torch.zeros(2, 1, 8, 8)]
    with pytest.raises(ValueError, match="the batch has no 'labels': OnlineProbe needs loaders of"):
        trainer([callback], 2).fit(tiny_model(), loader())
