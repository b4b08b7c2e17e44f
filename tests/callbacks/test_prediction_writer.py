"""PredictionWriter: what several ranks write becomes one file, and nothing is lost where a run is stopped."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import pretraining, tiny_backbone
from torch.utils.data import DataLoader

from d2v_lightning import (
    Backbone,
    EMATeacher,
    ImageClassifier,
    LogMelEncoder,
    Optimization,
    RegressionLoss,
    SpeechCTC,
    Transformer,
)
from d2v_lightning.callbacks import PredictionWriter
from d2v_lightning.flavour import pl
from datamodules import ImageDataModule, SpeechDataModule
from datamodules.speech.windows import SpeechWindows


def test_parts_of_several_ranks_are_joined_in_order_each_sample_once(tmp_path: Path) -> None:
    """Two ranks, of which the second repeats a sample to have as many as the first."""
    shares = {0: [[0, 2], [4]], 1: [[3, 1], [0]]}
    output = tmp_path / "all.csv"
    writers = {rank: PredictionWriter(str(output), top=2) for rank in shares}
    module = SimpleNamespace(class_names=["cat", "dog", "eel"])

    def trainer(rank: int) -> Any:
        return SimpleNamespace(
            global_rank=rank,
            world_size=2,
            is_global_zero=rank == 0,
            default_root_dir=str(tmp_path),
            strategy=SimpleNamespace(barrier=lambda name: None),
            datamodule=SimpleNamespace(predict_paths=[f"{letter}.png" for letter in "abcde"]),
        )

    for rank, batches in shares.items():
        for place, indices in enumerate(batches):
            probabilities = torch.tensor([[0.1, 0.2 + index / 10, 0.7 - index / 10] for index in indices])
            prediction = {"index": torch.tensor(indices), "probabilities": probabilities}
            writers[rank].write_on_batch_end(trainer(rank), module, prediction, None, {}, place, 0)  # type: ignore[arg-type]
    assert not output.exists()
    for rank in (1, 0):
        writers[rank].on_predict_end(trainer(rank), module)  # type: ignore[arg-type]
    rows = list(csv.reader(output.open()))[1:]
    assert [row[:3] for row in rows] == [
        ["0", "a.png", "eel"],
        ["1", "b.png", "eel"],
        ["2", "c.png", "eel"],
        ["3", "d.png", "dog"],
        ["4", "e.png", "dog"],
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["all.csv"]
    with pytest.raises(ValueError, match="nothing was predicted and no file written"):
        writers[0].on_predict_end(trainer(0), module)  # type: ignore[arg-type]


def test_the_first_rank_writes_the_file_even_if_it_could_read_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "said.jsonl"
    (tmp_path / "said.csv").write_text("another file\n")
    writers = [PredictionWriter(str(output)) for _ in range(2)]

    def trainer(rank: int) -> Any:
        return SimpleNamespace(
            global_rank=rank, world_size=2, is_global_zero=rank == 0, default_root_dir=str(tmp_path),
            strategy=SimpleNamespace(barrier=lambda name: None),
            datamodule=SimpleNamespace(predict_paths=["a.wav", "b.wav"]),         )  # fmt: skip

    prediction = {"index": torch.tensor([1]), "lines": [{"transcript": "B"}]}
    writers[1].write_on_batch_end(trainer(1), SimpleNamespace(), prediction, None, {}, 0, 0)  # type: ignore[arg-type]
    shares = [(writer._target, writer._kind) for writer in writers]
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.all_gather_object", lambda found, mine: found.__setitem__(slice(2), shares))
    for rank in (1, 0):
        writers[rank].on_predict_end(trainer(rank), SimpleNamespace())  # type: ignore[arg-type]
    assert output.read_text() == '{"file": "b.wav", "transcript": "B"}\n'


@pytest.fixture(autouse=True)
def a_recording_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.speech.windows.POOL", 1)


class Killed(pl.Callback):
    """Stops a run after its third batch, and counts them."""

    def __init__(self, after: int = 1000) -> None:
        self.after, self.batches = after, 0

    def on_predict_batch_end(self, *_: Any) -> None:
        self.batches += 1
        if self.batches == self.after:
            raise RuntimeError("killed")


def transcribe(folder: Path, seed: int, workers: int, after: int = 1000, kept: bool = False) -> int:
    torch.manual_seed(seed)
    trunk = Transformer(16, 1, 2, layer_scale=None)
    model = SpeechCTC(Backbone(LogMelEncoder(16, 20), trunk), vocabulary=["<blank>", "|", "A"])
    killed = Killed(after)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[PredictionWriter(str(folder / "said.jsonl"), overwrite=True), killed],
    )  # fmt: skip
    trainer.predict(model, SpeechDataModule(root=str(folder / "clips"), num_workers=workers), return_predictions=kept)
    return killed.batches


def speak(path: Path, seed: int) -> None:
    path.parent.mkdir(exist_ok=True)
    soundfile.write(path, 0.1 * np.random.default_rng(seed).standard_normal(6000), 16000)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stopped_transcription_goes_on_where_it_was(workers: int, tmp_path: Path) -> None:
    for number in range(5):
        speak(tmp_path / "clips" / f"{number}.wav", number)
    assert transcribe(tmp_path, 0, workers) == 5
    whole = (tmp_path / "said.jsonl").read_bytes()
    (tmp_path / "said.jsonl").unlink()
    with pytest.raises(RuntimeError, match="killed"):
        transcribe(tmp_path, 0, workers, after=3)
    assert not (tmp_path / "said.jsonl").exists()
    part = next(tmp_path.glob(".said.jsonl.rank0"))
    with open(part, "ab") as file:
        file.write(b"\0\0\0\n[1]\n")  # what a power cut leaves
    assert transcribe(tmp_path, 0, workers) == 2
    assert (tmp_path / "said.jsonl").read_bytes() == whole
    with pytest.raises(RuntimeError, match="killed"):
        transcribe(tmp_path, 0, workers, after=4)
    with pytest.warns(UserWarning, match="rank0 is of a run with another network, weights, decoder or settings"):
        assert transcribe(tmp_path, 1, workers) == 5
    assert (tmp_path / "said.jsonl").read_bytes() != whole
    assert len(whole.splitlines()) == 5
    assert json.loads(whole.splitlines()[3])["file"].endswith("3.wav")
    assert {path.name for path in tmp_path.iterdir()} == {"clips", "said.jsonl"}


def test_a_stopped_transcription_knows_each_recording(tmp_path: Path) -> None:
    for number in range(1, 5):
        speak(tmp_path / "clips" / f"{number}.wav", number)
    with pytest.raises(RuntimeError, match="killed"):
        transcribe(tmp_path, 0, 0, after=3)
    speak(tmp_path / "clips" / "0.wav", 0)
    speak(tmp_path / "clips" / "2.wav", 7)
    (tmp_path / "clips" / "3.wav").unlink()
    assert transcribe(tmp_path, 0, 0) == 3, "0 is new, 2 another, 4 was not reached"
    files = [json.loads(line)["file"] for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert [Path(file).name for file in files] == ["0.wav", "1.wav", "2.wav", "4.wav"]
    with pytest.raises(RuntimeError, match="killed"):
        transcribe(tmp_path, 0, 0, after=2)
    assert transcribe(tmp_path, 0, 0, kept=True) == 4, "whoever asks for all predictions gets all"


def classify(folder: Path, output: str, after: int = 1000, overwrite: bool = False, **data: Any) -> int:
    torch.manual_seed(0)
    model = ImageClassifier(2, backbone=tiny_backbone(), mixup=0, cutmix=0, class_names=["a", "b"])
    killed = Killed(after)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[PredictionWriter(str(folder / output), overwrite=overwrite), killed],
    )  # fmt: skip
    pictures = ImageDataModule(
        task="classify", predict_files=str(folder / "in"), batch_size=2, num_workers=0, rand_augment=None, **data
    )
    trainer.predict(model, pictures, return_predictions=False)
    return killed.batches


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Seven, of which one cannot be read, one is too small, and one has a name that is not UTF-8."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (16, 16), (40 * number, 9, 200)).save(folder / f"{number}.png")
    (folder / "bad.png").write_bytes(b"<html>404</html>")
    Image.new("RGB", (1, 1)).save(folder / "pixel.png")
    Image.new("RGB", (16, 16)).save(folder / "x.png")
    os.rename(os.fsencode(folder / "x.png"), os.fsencode(folder) + b"/z\\\xe9\n.png")
    return folder


def test_every_picture_that_can_be_read_has_a_row(pictures: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"2 unreadable file\(s\) left out: .*bad.png: .*pixel.png: it has 1x1 pixels"):
        classify(tmp_path, "p.csv")
    rows = list(csv.DictReader((tmp_path / "p.csv").open(newline="")))
    assert [row["path"].rpartition("/")[2] for row in rows] == [
        "0.png",
        "1.png",
        "2.png",
        "3.png",
        r"z\\\xe9" + "\n.png",
    ]
    assert [row["index"] for row in rows] == ["0", "1", "2", "3", "6"]


def test_stopped_predictions_of_pictures_go_on(pictures: Path, tmp_path: Path) -> None:
    """With the bytes of an unbroken run; a file that is added, removed or mended costs no other."""
    assert classify(tmp_path, "whole.csv") == 3
    with pytest.raises(RuntimeError, match="killed"):
        classify(tmp_path, "p.csv", after=2)
    with pytest.raises(ValueError, match="is left of a run with another network, weights, decoder or other settings"):
        classify(tmp_path, "p.csv", crop_share=1.0)
    assert classify(tmp_path, "p.csv") == 1
    assert (tmp_path / "p.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"in", "p.csv", "whole.csv"}

    with pytest.raises(RuntimeError, match="killed"):
        classify(tmp_path, "q.csv", after=2)
    (pictures / "1.png").unlink()
    Image.new("RGB", (16, 16)).save(pictures / "bad.png")
    assert classify(tmp_path, "q.csv") == 2, "bad and z, in batches that others share"
    rows = list(csv.DictReader((tmp_path / "q.csv").open(newline="")))
    assert [row["path"].rpartition("/")[2][:3] for row in rows] == ["0.p", "2.p", "3.p", "bad", "z\\\\"]


def test_what_is_predicted_outlives_an_output_that_cannot_be_written(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("d2v_lightning.callbacks.prediction_writer.write_rows", full)
        with pytest.raises(OSError, match="No space") as stop:
            classify(tmp_path, "p.csv")
    kept = f"What was predicted is kept beside {tmp_path / 'p.csv'}: the same command goes on from it"
    assert stop.value.__notes__ == [kept]
    assert classify(tmp_path, "p.csv") == 0, "what cannot be read is tried again, and gives no batch"
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 7, "one name holds a line break"


def test_a_full_disk_is_named_and_keeps_whole_batches_alone(
    pictures: Path, tmp_path: Path, small_files: Callable[[int], None]
) -> None:
    def left() -> set[str]:
        return {path.name for path in tmp_path.iterdir()} - {"in", "p.csv"}

    for size in (50, 150):  # in the first line of the part; in the first batch
        small_files(size)
        with pytest.raises(OSError, match=r"too large.*p\.csv\.rank0") as stop:
            classify(tmp_path, "p.csv")
        assert left() == set()
        assert not hasattr(stop.value, "__notes__")
    small_files(300)
    with pytest.raises(OSError, match=r"too large.*p\.csv\.rank0") as stop:
        classify(tmp_path, "p.csv")
    assert left() == {".p.csv.rank0"}
    assert "the same command goes on from it" in stop.value.__notes__[0]
    small_files(1 << 20)
    assert classify(tmp_path, "p.csv") == 2
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 7


def test_an_output_has_one_writer(pictures: Path, tmp_path: Path) -> None:
    code = (
        "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX); print(flush=True); input()"
    )
    lock = tmp_path / ".p.csv.lock"
    other = subprocess.Popen([sys.executable, "-c", code, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    other.stdout.readline()
    with pytest.raises(
        ValueError, match=r"p\.csv is in use by another run: wait for its end, or choose another output"
    ):
        classify(tmp_path, "p.csv")
    other.kill()
    other.communicate()
    assert classify(tmp_path, "p.csv") == 3
    assert {path.name for path in tmp_path.iterdir()} == {"in", "p.csv"}


def test_a_run_that_never_began_loses_nothing(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        classify(tmp_path, "p.csv", after=2)
    pictures.rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError):
        classify(tmp_path, "p.csv")
    (tmp_path / "away").rename(pictures)
    assert classify(tmp_path, "p.csv") == 1


def test_two_runs_to_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speak(tmp_path / "clips" / "1.wav", 1)

    def another_run(*_: Any) -> None:
        (tmp_path / ".said.jsonl.rank0").unlink()

    monkeypatch.setattr(Killed, "on_predict_epoch_end", another_run, raising=False)
    with pytest.raises(FileNotFoundError, match="another run writes to the same"):
        transcribe(tmp_path, 0, 0)
    assert not (tmp_path / "said.jsonl").exists()


class PlainModule(pl.LightningModule):
    """Of somebody who has never heard of us: its `layers` are what it consists of."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.layers, self.shape = torch.nn.Sequential(torch.nn.Identity()), shape

    def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.layers(batch).reshape(len(batch), *self.shape)


def plain_features(output: Path, *shape: int) -> torch.Tensor:
    samples = torch.randn(5, math.prod(shape))
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[PredictionWriter(str(output))],
    )  # fmt: skip
    trainer.predict(PlainModule(*shape), DataLoader(samples, 2), return_predictions=False)  # type: ignore[arg-type]
    return samples.reshape(5, *shape)


@pytest.mark.parametrize("shape", [(6,), (2, 3), (2, 3, 4)])
def test_features_of_any_module_and_loader(shape: tuple[int, ...], tmp_path: Path) -> None:
    """Samples without a name are called by their place."""
    expected = plain_features(tmp_path / "x.npy", *shape)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), expected.numpy())
    expected = plain_features(tmp_path / "x.safetensors", *shape)
    found = load_file(tmp_path / "x.safetensors")
    assert sorted(found) == ["0", "1", "2", "3", "4"]
    assert all(torch.equal(found[str(place)], row) for place, row in enumerate(expected))


def test_blocks_of_any_module_in_parquet(tmp_path: Path) -> None:
    expected = plain_features(tmp_path / "x.parquet", 2, 3)
    table = pq.read_table(tmp_path / "x.parquet").to_pydict()
    assert table["layer"] == [0, 1] * 5
    assert table["features"] == expected.flatten(0, 1).tolist()


def test_every_token_does_not_fit_into_an_array(tmp_path: Path) -> None:
    module = PlainModule(1)
    module.predict_step = lambda batch, batch_idx: {"features": [torch.zeros(1, 3, 4), torch.zeros(1, 2, 4)]}  # type: ignore[method-assign, assignment]
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        callbacks=[PredictionWriter(str(tmp_path / "x.npy"))],
    )
    with pytest.raises(ValueError, match="have different lengths, which"):
        trainer.predict(module, DataLoader([torch.zeros(1)] * 2, 2), return_predictions=False)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_features_of_a_long_recording_are_of_all_of_it(tmp_path: Path) -> None:
    """They once were of its first window alone."""
    (tmp_path / "clips").mkdir()
    for name, seconds in (("a", 1), ("long", 29), ("z", 2)):
        noise = np.random.default_rng(seconds).standard_normal(seconds * 16_000) * np.linspace(0, 0.3, seconds * 16_000)
        soundfile.write(tmp_path / "clips" / f"{name}.wav", noise, 16_000)
    torch.manual_seed(0)
    network = Backbone(LogMelEncoder(16, 20), Transformer(16, 2, 2, layer_scale=None))
    model = pretraining(network, RegressionLoss(), EMATeacher(), Optimization(lr=1e-3))
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[PredictionWriter(str(tmp_path / "x.npy"))],
    )  # fmt: skip
    data = SpeechDataModule(root=str(tmp_path / "clips"), num_workers=0, window_seconds=5)
    trainer.predict(model, data, return_predictions=False)
    expected = []
    for path in data.predict_paths:
        frames = []
        for batch in SpeechWindows([path], core_seconds=5):
            found = model.backbone.features(batch["inputs"], batch.get("padding_mask"), layers=[-1]).layers[0]
            frames += [row[first:end] for row, (first, end) in zip(found, batch["keep"].tolist(), strict=True)]
        expected.append(torch.cat(frames).mean(dim=0))
    torch.testing.assert_close(
        torch.from_numpy(np.load(tmp_path / "x.npy")), torch.stack(expected), atol=1e-5, rtol=1e-4
    )
    assert (tmp_path / "x.csv").read_text().splitlines()[2].endswith("long.wav")
