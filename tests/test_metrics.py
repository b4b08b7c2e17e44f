"""Figures of an evaluation are those of the data: the same on one, two and three ranks, whatever the batches are."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from tiny import image_batch, tiny_backbone
from tiny import trainer as quiet
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from two_ranks import in_ranks

from d2v_lightning import (
    AudioEncoder,
    Backbone,
    ConvDecoder,
    Data2Vec,
    EMATeacher,
    GLUEClassifier,
    ImageClassifier,
    ImageEncoder,
    MultimodalData2Vec,
    Optimization,
    RegressionLoss,
    SpeechCTC,
    Targets,
    TextEncoder,
    Transformer,
    VisibleStudent,
)
from d2v_lightning.flavour import pl
from d2v_lightning.method.objective import Objective
from datamodules import ImageDataModule, MultimodalDataModule, ResumableLoader, SpeechDataModule, TextCollator
from datamodules.shared.samplers import EpochBatchSampler, world
from datamodules.text.glue import Examples

PICTURES, CLIPS, SENTENCES = 11, 9, 7
CONVS = [(8, 10, 5), (8, 4, 4), (8, 4, 4), (8, 4, 4)]
LETTERS = ["<blank>", "|", "A", "B", "C"]


# ---- what is evaluated ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of which one is broken, in two splits and in a table; clips of which one is; everything odd in number."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split, number in (("train", 4), ("val", PICTURES), ("test", 2)):
        for place in range(number):
            path = folder / "pictures" / split / "ab"[place % 2] / f"{place:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(path)
    (folder / "pictures" / "val" / "a" / "04.png").write_bytes(b"broken")
    for number in range(CLIPS):
        path = folder / "clips" / "dev" / "1" / "2" / f"1-2-{number:04}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.1 * rng.standard_normal(3000 + 400 * number), 16_000)
    said = [f"1-2-{number:04} {'AB C'[: 1 + number % 4].strip()}" for number in range(CLIPS)]
    (path.parent / "1-2.trans.txt").write_text("\n".join(said))
    (path.parent / "1-2-0004.wav").write_bytes(path.read_bytes()[:600])
    return folder


def classifier() -> ImageClassifier:
    torch.manual_seed(0)
    model = ImageClassifier(2, tiny_backbone(), mixup=0, cutmix=0, head_std=1.0)
    return model.double()


def pretraining() -> Data2Vec:
    """2.0, with noise and class tokens."""
    torch.manual_seed(0)
    trunk = Transformer(dim=16, depth=2, num_heads=2, norm="post", final_norm=False, layer_scale=None, init="normal")
    encoder = ImageEncoder(image_size=16, patch_size=4, dim=16, positions="sine_cosine")
    decoder = ConvDecoder(dim=16, depth=2, width=16, groups=4, grid=(4, 4))
    student = VisibleStudent(Backbone(encoder, trunk), decoder)
    targets = Targets(average_top_k_layers=2, layer_results="ffn", norm_each=["instance"])
    loss = RegressionLoss(beta=0.0, over_width="sum")
    return Data2Vec(student, targets, loss, EMATeacher(), Optimization(), class_loss=0.01).double()


def speech() -> SpeechCTC:
    torch.manual_seed(0)
    trunk = Transformer(16, 1, 2, norm="post", final_norm=False, input_norm=True, qkv_bias="qkv", init="normal")
    encoder = AudioEncoder(16, CONVS, position_depth=1, position_width=4, position_groups=2)
    return SpeechCTC(Backbone(encoder, trunk), vocabulary=LETTERS).double()


def sentences(task: Any) -> GLUEClassifier:
    torch.manual_seed(0)
    trunk = Transformer(16, 1, 2, norm="post", final_norm=False, qkv_bias="qkv", layer_scale=None, init="normal")
    model = GLUEClassifier(task, backbone=Backbone(TextEncoder(16, 40, 20, mask_id=39), trunk))
    torch.nn.init.normal_(model.out_proj.weight, std=3.0)
    return model.double()


def sentence_loader(batch_size: int, labels: list[Any]) -> ResumableLoader:
    ids = [[0, *range(4 + n, 8 + 2 * n), 2] for n in range(SENTENCES)]
    sampler = EpochBatchSampler(SENTENCES, batch_size, shuffle=False)
    return ResumableLoader(Examples(ids, labels, [""] * SENTENCES), sampler, TextCollator())


class Unmarked:
    """Batches of one's own, dealt out to the ranks: some get one more, some perhaps none."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __len__(self) -> int:
        return self.number

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        rank, world_size = world()
        for place in range(rank, self.number, world_size):
            yield {"inputs": torch.arange(place, 9 + place)[None], "labels": torch.tensor([place % 2])}


def pictures(folder: Path, batch_size: int, task: Any = "classify", **options: Any) -> ImageDataModule:
    settings = {"task": task, "batch_size": batch_size, "num_workers": 0, "probe_samples": 2, **options}
    return ImageDataModule(root=str(folder / "pictures"), **settings)


def evaluate(folder: Path, batch_size: int, out: Path | None = None) -> dict[str, dict[str, float]]:
    """Figures of all modules, on the ranks that there are."""
    warnings.filterwarnings("ignore")
    masks = {"masking": "inverse_blocks", "num_masks": 2, "mask_ratio": 0.5, "visible_block": 2}
    several = MultimodalData2Vec({"image": _objective(pretraining())}, EMATeacher(), Optimization()).double()
    one = pictures(folder, batch_size, "pretrain", **masks)
    clips = SpeechDataModule(
        root=str(folder / "clips"), task="ctc", val_split="dev", batch_samples=13_000, min_seconds=0.1, num_workers=0
    )
    classes, numbers = [n % 2 for n in range(SENTENCES)], [float(n % 5) for n in range(SENTENCES)]
    matched, mismatched = (sentence_loader(batch_size, [n % classes for n in range(SENTENCES)]) for classes in (3, 2))
    found = {
        "classes": validated(classifier(), pictures(folder, batch_size)),
        "few": validated(classifier(), pictures(folder, batch_size), test=True),
        "pretraining": validated(pretraining(), one),
        "several": validated(
            several, MultimodalDataModule({"image": pictures(folder, batch_size, "pretrain", **masks)})
        ),
        "speech": validated(speech(), clips),
        "cola": validated(sentences("cola"), sentence_loader(batch_size, classes)),
        "mrpc": validated(sentences("mrpc"), sentence_loader(batch_size, classes)),
        "stsb": validated(sentences("stsb"), sentence_loader(batch_size, numbers)),
        "mnli": validated(sentences("mnli"), [matched, mismatched]),
        "unmarked": validated(sentences("sst2"), Unmarked(5)),
        "one batch": validated(sentences("sst2"), Unmarked(1)),
    }
    if out is not None and os.environ["RANK"] == "0":
        out.write_text(json.dumps(found))
    return found


def _objective(model: Data2Vec) -> Objective:
    return Objective(model.student, model.make_targets, model.loss, class_loss=model.class_loss)


def validated(model: pl.LightningModule, source: Any, test: bool = False) -> dict[str, float]:
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        precision="64-true",
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    (trainer.test if test else trainer.validate)(model, source, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


# ---- one process ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(data: Path) -> dict[str, dict[str, float]]:
    return evaluate(data, 3)


def test_figures_of_one_process_are_those_of_the_data(alone: dict[str, dict[str, float]], data: Path) -> None:
    source = pictures(data, 1)
    model = classifier().eval()
    source.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    source.trainer.strategy.connect(model)
    source.setup("validate")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = [batch for batch in source.val_dataloader() if "repeated" not in batch]  # type: ignore[union-attr]
    assert len(rows) == PICTURES - 1, "the broken one does not count, nor what stands in for it"
    logits = torch.cat([model(batch["inputs"].double()) for batch in rows])
    labels = torch.cat([batch["labels"] for batch in rows])
    assert alone["classes"]["val/loss"] == pytest.approx(float(F.cross_entropy(logits, labels)), abs=1e-7)
    assert alone["classes"]["val/top1"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()), abs=1e-7)
    assert set(alone["mnli"]) == {f"val/{m}{n}" for m in ("", "mismatched_") for n in ("loss", "accuracy", "score")}
    assert set(alone["pretraining"]) == {"val/loss", "val/class_token_loss"}
    assert set(alone["several"]) == {"val/image/loss", "val/image/class_token_loss"}
    assert set(alone["few"]) == {"test/loss", "test/top1"}


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_figures_do_not_depend_on_ranks_or_batches(
    ranks: int, alone: dict[str, dict[str, float]], data: Path, tmp_path: Path
) -> None:
    if ranks == 1:
        found = evaluate(data, 4)
    else:
        in_ranks(ranks, evaluate, data, 1, tmp_path / "found.json")
        found = json.loads((tmp_path / "found.json").read_text())
    for case, figures in alone.items():
        assert set(found[case]) == set(figures)
        for name, value in figures.items():
            exact = name.endswith(("loss", "pearson", "spearman", "score", "matthews"))
            assert found[case][name] == (pytest.approx(value, abs=1e-9) if exact else value), (case, name)


class Seen(pl.Callback):
    """Names of what can be watched when a validation has ended."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.names = set(trainer.callback_metrics)


def two_of(name: str, folder: Path) -> tuple[Any, Any]:
    """A module, and a loader that can be had twice."""
    if name == "GLUEClassifier":
        return sentences("sst2").float(), sentence_loader(2, [n % 2 for n in range(SENTENCES)])
    if name == "SpeechCTC":
        batch = {
            "inputs": torch.randn(2, 4000),
            "labels": torch.tensor([[2], [3]]),
            "label_lengths": torch.tensor([1, 1]),
        }
        return speech().float(), DataLoader([batch, batch], batch_size=None)  # type: ignore[arg-type]
    batch = {**image_batch(2, 8), "labels": torch.tensor([0, 1])}
    if name == "MultimodalData2Vec":
        model = MultimodalData2Vec({"image": _objective(pretraining().float())}, EMATeacher(), Optimization())
        return model, DataLoader([{**batch, "modality": "image"}], batch_size=None)  # type: ignore[arg-type]
    model = classifier() if name == "ImageClassifier" else pretraining()
    return model.float(), DataLoader([batch], batch_size=None)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["Data2Vec", "MultimodalData2Vec", "ImageClassifier", "SpeechCTC", "GLUEClassifier"])
def test_several_loaders_have_figures_of_their_own(name: str, data: Path, tmp_path: Path) -> None:
    model, loader = two_of(name, data)
    label = "image/" if name == "MultimodalData2Vec" else ""
    keeper, seen = pl.callbacks.ModelCheckpoint(tmp_path, monitor=f"val/{label}loss"), Seen()
    runner = quiet([keeper, pl.callbacks.EarlyStopping(f"val/{label}loss"), seen], 2, tmp_path, val_check_interval=1)
    runner.fit(model, loader, [loader, loader])
    assert {f"val/{label}loss{end}" for end in ("", "/dataloader_idx_0", "/dataloader_idx_1")} <= seen.names
    assert keeper.best_model_score is not None
    runner.test(model, [loader, loader], verbose=False)
    losses = [float(runner.callback_metrics[f"test/{label}loss{end}"]) for end in ("", "/dataloader_idx_1")]
    assert losses[0] == losses[1]
    assert len(runner.predict(model, [loader, loader]) or []) == 2
