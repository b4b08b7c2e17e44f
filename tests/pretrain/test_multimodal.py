"""Several modalities on one trunk: what a step changes, whose turn it is, resume, monitors, and one modality taken out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from stopped_runs import assert_same
from torch import Tensor
from two_ranks import TwoRanks

from d2v_lightning import (
    Backbone,
    CollapseMonitor,
    ConvDecoder,
    Data2Vec,
    EMATeacher,
    ImageClassifier,
    ImageEncoder,
    LinearDecoder,
    MaskTokenStudent,
    MultimodalData2Vec,
    Objective,
    OnlineProbe,
    Optimization,
    RegressionLoss,
    Targets,
    Transformer,
    VisibleStudent,
    load_backbone,
)
from d2v_lightning.checkpoints.pretrained import read_pretrained
from d2v_lightning.flavour import pl
from d2v_lightning.nn.normalization import IMAGENET
from datamodules import ImageDataModule, MultimodalDataModule
from datamodules.multimodal import spread_out
from examples.signals import SignalDataModule, SignalEncoder


def trunk(**options: Any) -> Transformer:
    return Transformer(
        **{
            "dim": 16,
            "depth": 2,
            "num_heads": 2,
            "norm": "post",
            "final_norm": False,
            "input_norm": True,
            "layer_scale": None,
            "dropout": 0.2,
            "init": "normal",
            **options,
        }
    )


def objectives(**options: Any) -> dict[str, Objective]:
    """Digits by 2.0 and signals by 1.0, with a loss and targets of their own."""
    image = ImageEncoder(image_size=8, patch_size=2, in_channels=1, dim=16, positions="sine_cosine", init="xavier")
    signal = SignalEncoder(patch=16, dim=16)
    return {
        "image": Objective(
            VisibleStudent(Backbone(image, trunk()), ConvDecoder(16, (4, 4), depth=1, width=16, groups=2)),
            Targets(2, "ffn", ["instance"], ["layer"]),
            RegressionLoss(0.0, "sum", "rsqrt_width"),
            class_loss=0.01,
        ),
        "signal": Objective(
            MaskTokenStudent(Backbone(signal, trunk(**options)), LinearDecoder(16)), Targets(1), RegressionLoss()
        ),
    }


def model(decay: float = 0.9) -> MultimodalData2Vec:
    pl.seed_everything(1, verbose=False)
    return MultimodalData2Vec(
        objectives(), EMATeacher(decay, decay), Optimization(lr=1e-3, schedule="constant", warmup=1)
    )


def data(turns: dict[str, int] | None = None) -> MultimodalDataModule:
    image = ImageDataModule(
        dataset="digits",
        batch_size=16,
        masking="inverse_blocks",
        mask_ratio=0.75,
        visible_block=2,
        num_masks=2,
        colour_jitter=0.0,
        num_workers=0,
    )
    return MultimodalDataModule({"image": image, "signal": SignalDataModule(patch=16, batch_size=8)}, turns)


class Notes(pl.Callback):
    """Modality and loss of every micro-batch, with the optimiser steps taken before it."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, str, float]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.rows.append((self.step, batch["modality"], float(outputs["loss"])))


def train(
    module: MultimodalData2Vec,
    datamodule: MultimodalDataModule,
    steps: int,
    ckpt_path: Path | None = None,
    **options: Any,
) -> pl.Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "max_steps": steps,
        "max_epochs": -1,
        "limit_train_batches": 6,
        "limit_val_batches": 0,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(**{**settings, **options})
    trainer.fit(module, datamodule, ckpt_path=ckpt_path, weights_only=True)
    return trainer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("multimodal") / "last.ckpt"
    train(model(), data(), 4).save_checkpoint(path)
    return path


def changed(before: dict[str, Tensor], module: MultimodalData2Vec) -> set[str]:
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}


def test_students_and_teachers_have_one_trunk_each_and_every_parameter_is_trained_once() -> None:
    module = model()
    image, signal = module.modalities["image"], module.modalities["signal"]
    assert image.student.backbone.transformer is signal.student.backbone.transformer
    assert image.teacher.transformer is signal.teacher.transformer
    trained = [p for group in module.optimization.parameter_groups(module) for p in group["params"]]
    assert len(trained) == len({id(p) for p in trained}) == sum(p.requires_grad for p in module.parameters())
    own, theirs = module.ema_pairs()
    assert len(own) == len({id(p) for p in own}) == len(theirs)
    assert {id(p) for p in own} == {id(p) for p in module.parameters() if not p.requires_grad}


def test_the_loss_of_a_modality_is_that_of_data2vec_with_the_same_weights() -> None:
    module, datamodule = model().eval(), data()
    train(module, datamodule, 2)
    loader = datamodule.train_dataloader()
    for batch, name in zip(loader, ("image", "signal"), strict=False):
        assert batch["modality"] == name
        objective = copy.deepcopy(objectives()[name])
        objective.load_state_dict(module.modalities[name].state_dict())
        alone = Data2Vec(
            objective.student,
            objective.make_targets,
            objective.loss,
            EMATeacher(),
            Optimization(),
            class_loss=objective.class_loss,
        )
        alone.teacher = objective.teacher
        alone.eval()
        module.eval()
        torch.manual_seed(0)
        expected, _ = alone.regress(batch)
        torch.manual_seed(0)
        assert torch.equal(module.objective(batch).regress(batch)[0], expected)


def test_a_step_trains_the_trunk_and_one_modality_and_moves_the_teacher_once() -> None:
    module = model(decay=0.5)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    train(module, data(), 1)
    moved = changed(before, module)
    assert not [name for name in moved if name.startswith("modalities.signal.") and ".transformer." not in name]
    for part in ("student.backbone.encoder", "student.decoder", "student.backbone.transformer", "teacher.encoder"):
        assert any(name.startswith(f"modalities.image.{part}") for name in moved), part
    after = module.state_dict()
    name = "transformer.blocks.0.mlp.fc1.weight"
    half = (before[f"modalities.image.teacher.{name}"] + after[f"modalities.image.student.backbone.{name}"]) / 2
    torch.testing.assert_close(after[f"modalities.image.teacher.{name}"], half)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_all_batches_of_an_optimiser_step_are_of_one_modality(accumulate: int) -> None:
    notes = Notes()
    train(model(), data({"image": 2, "signal": 1}), 6, callbacks=[notes], accumulate_grad_batches=accumulate)
    assert len(notes.rows) == 6 * accumulate
    assert [step for step, _, _ in notes.rows] == [step for step in range(6) for _ in range(accumulate)]
    for step, name, _ in notes.rows:
        assert name == ("image", "signal", "image")[step % 3]


def test_an_epoch_goes_through_all_data_once_and_what_is_short_begins_again() -> None:
    datamodule = data({"image": 3, "signal": 1})
    module = model()
    trainer = train(module, datamodule, 1)
    loader = datamodule.train_dataloader()
    assert {name: len(one) for name, one in loader.loaders.items()} == {"image": 81, "signal": 512}
    assert len(loader) == 4 * 512
    assert trainer.num_training_batches == 6
    keys = [tuple(batch["index"].tolist()) for _, batch in zip(range(4 * 27 + 4), loader, strict=False)]
    pictures = [
        key for number, key in enumerate(keys) if number % 4 != spread_out({"image": 3, "signal": 1}).index("signal")
    ]
    first_epoch = [index for key in pictures[:81] for index in key]
    assert len(set(first_epoch)) == len(first_epoch) == 81 * 16
    assert set(pictures[81]) < set(range(1797)), "the next epoch follows"


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path: Path, accumulate: int) -> None:
    """Epochs of six batches, stopped after three steps: in the middle of an epoch, and at its end."""
    turns = {"image": 2, "signal": 1}

    def run(ckpt_path: Path | None = None) -> tuple[list[Any], dict[str, Any]]:
        module, notes = model(), Notes()
        pl.seed_everything(3 if ckpt_path is None else 99, verbose=False)
        keep = pl.callbacks.ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        monitors = [CollapseMonitor(1, 2, modality=name) for name in ("image", "signal")]
        settings = {"accumulate_grad_batches": accumulate, "enable_checkpointing": True, "max_epochs": 1 + accumulate}
        runner = train(module, data(turns), -1, ckpt_path, callbacks=[notes, keep, *monitors], **settings)
        runner.save_checkpoint(tmp_path / "end.ckpt")
        return notes.rows, torch.load(tmp_path / "end.ckpt", weights_only=True)

    whole, expected = run()
    again, end = run(tmp_path / "step=3.ckpt")
    assert again == whole[3 * accumulate :]
    assert_same(end, expected)


def test_every_modality_has_its_monitor_and_its_losses(caplog: pytest.LogCaptureFixture) -> None:
    monitors = {name: CollapseMonitor(2, 1, modality=name) for name in ("image", "signal")}
    probe = OnlineProbe(None, 3, modality="signal")
    with caplog.at_level("INFO"):
        trainer = train(model(), data(), 6, callbacks=[*monitors.values(), probe])
    logged = trainer.callback_metrics
    for name, other in (("image", "signal"), ("signal", "image")):
        assert f"train/{name}/loss" in logged
        reading = monitors[name].reading
        assert logged[f"collapse/{name}/target_rank"] == pytest.approx(reading["target_rank"])
        assert reading["target_rank"] != monitors[other].reading["target_rank"]
        assert any(f"CollapseMonitor ({name}), step" in record.getMessage() for record in caplog.records)
    assert "train/loss" not in logged
    assert {"probe/signal/knn_teacher", "probe/signal/linear_student"} <= set(logged)
    assert monitors["image"].state_key != monitors["signal"].state_key


def test_too_many_layers_are_refused_by_the_name_of_whose_targets_they_are() -> None:
    student = objectives()["signal"].student
    with pytest.raises(ValueError, match="targets for SignalEncoder: average_top_k_layers is 9, but the trunk has 2"):
        Objective(student, Targets(9), RegressionLoss())


def test_callbacks_ask_for_their_modality() -> None:
    with pytest.raises(
        ValueError, match="CollapseMonitor looks at one modality: set its modality to one of image, signal"
    ):
        train(model(), data(), 1, callbacks=[CollapseMonitor()])
    with pytest.raises(ValueError, match=r"OnlineProbe looks at one modality: .* \(it is 'text'\)"):
        train(model(), data(), 1, callbacks=[OnlineProbe(modality="text")])


def test_one_modality_is_taken_out_of_a_checkpoint(checkpoint: Path) -> None:
    whole = MultimodalData2Vec.load_from_checkpoint(checkpoint)
    image, signal = whole.modalities["image"], whole.modalities["signal"]
    assert image.backbone.transformer is signal.backbone.transformer
    pictures, waves = torch.randn(2, 1, 8, 8), torch.randn(2, 4, 256)
    backbone = load_backbone(checkpoint, modality="image")
    assert torch.equal(backbone.features(pictures).layers[-1], image.backbone.features(pictures).layers[-1])
    teacher = load_backbone(checkpoint, part="teacher", modality="signal")
    tokens, _ = teacher.encoder.features(waves)
    kept = [1]
    expected = signal.teacher(signal.backbone, waves, tokens, None, kept)[0].block
    assert torch.equal(teacher.eval().contextualize(tokens, keep=kept)[1][0].block, expected)
    with pytest.raises(ValueError, match=r"modality is None .* choose from its modalities, image, signal"):
        load_backbone(checkpoint)
    again = load_backbone(read_pretrained(checkpoint), modality="image")
    assert torch.equal(again.features(pictures).layers[-1], backbone.features(pictures).layers[-1])
    with pytest.raises(ValueError, match=r"modality is 'text' .* choose from its modalities, image, signal"):
        load_backbone(checkpoint, modality="text")


def test_one_modality_is_fine_tuned(checkpoint: Path, tmp_path: Path) -> None:
    classifier = ImageClassifier(num_classes=10, checkpoint=str(checkpoint), modality="image", drop_path=0.0)
    assert classifier.encoder.normalization == IMAGENET.of_channels(1), "as its datamodule told the run of several"
    pictures = ImageDataModule(dataset="digits", task="classify", batch_size=32, rand_augment=None, num_workers=0)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(classifier, pictures)
    trainer.save_checkpoint(tmp_path / "fine.ckpt")
    again = ImageClassifier.load_from_checkpoint(tmp_path / "fine.ckpt").eval()
    inputs = torch.randn(2, 1, 8, 8)
    assert torch.equal(again(inputs), classifier.eval()(inputs))


def test_a_directory_keeps_all_modalities(checkpoint: Path, tmp_path: Path) -> None:
    whole = MultimodalData2Vec.from_pretrained(checkpoint)
    whole.save_pretrained(tmp_path / "out")
    again = MultimodalData2Vec.from_pretrained(tmp_path / "out")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


class Save(pl.Callback):
    """Each rank writes its weights and the modalities that it saw."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.notes = folder, Notes()

    def on_train_batch_start(self, *args: Any) -> None:
        self.notes.on_train_batch_start(*args)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.notes.on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        seen = [name for _, name, _ in self.notes.rows]
        losses = [loss for _, _, loss in self.notes.rows]
        content = {"state": pl_module.state_dict(), "seen": seen, "losses": losses}
        torch.save(content, self.folder / f"rank{trainer.global_rank}.pt")


def test_two_processes_take_the_same_turns_and_stay_equal(tmp_path: Path) -> None:
    strategy = TwoRanks(find_unused_parameters=True)
    options = {"strategy": strategy, "devices": 2, "use_distributed_sampler": False}
    train(model(), data(), 3, callbacks=[Save(tmp_path)], **options)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert first["seen"] == second["seen"] == ["image", "signal", "image"]
    assert first["losses"] != second["losses"], "each has its own share of the data"
    for name, tensor in first["state"].items():
        assert torch.equal(tensor, second["state"][name]), name


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"transformer\.depth is 2 for image and 3 for signal"):
        MultimodalData2Vec(objectives(depth=3), EMATeacher(), Optimization())
    with pytest.raises(ValueError, match="named like 'image'"):
        MultimodalData2Vec({"a.b": objectives()["image"]}, EMATeacher(), Optimization())
    with pytest.raises(ValueError, match="a batch of 'text', the model has image, signal"):
        model().training_step({"modality": "text"}, 0)  # type: ignore[typeddict-item]
    with pytest.raises(ValueError, match="the batch has no 'modality'"):
        model().training_step({}, 0)
    image, signal = data().datamodules.values()
    with pytest.raises(ValueError, match="give each a number of 1 or more"):
        MultimodalDataModule({"image": image, "signal": signal}, {"image": 1})
    with pytest.raises(ValueError, match="the model has modalities image, signal, the data image"):
        train(model(), MultimodalDataModule({"image": image}), 1)
    with pytest.raises(ValueError, match="effective_batch of image"):
        MultimodalDataModule({"image": ImageDataModule(dataset="digits", effective_batch=64)})
