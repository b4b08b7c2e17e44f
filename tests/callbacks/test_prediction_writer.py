"""PredictionWriter: what several ranks write becomes one file, and nothing is lost where a run is stopped."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import soundfile
import torch

from d2v_lightning import Backbone, LogMelEncoder, SpeechCTC, Transformer
from d2v_lightning.callbacks import PredictionWriter
from datamodules import SpeechDataModule


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
            received_sigterm=False,
            strategy=SimpleNamespace(barrier=lambda name: None),
            datamodule=SimpleNamespace(predict_paths=[f"{letter}.png" for letter in "abcde"]),
            predict_dataloaders=[[0, 0]],
            num_predict_batches=[2],
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
    stopped = SimpleNamespace(received_sigterm=True)
    with pytest.warns(UserWarning, match="stopped by SIGTERM: no predictions were written"), pytest.raises(SystemExit):
        writers[0].write_on_batch_end(stopped, module, {}, None, {}, 0, 0)  # type: ignore[arg-type]
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
            received_sigterm=False, global_rank=rank, world_size=2, is_global_zero=rank == 0, default_root_dir=str(tmp_path),
            strategy=SimpleNamespace(barrier=lambda name: None),
            datamodule=SimpleNamespace(predict_paths=["a.wav", "b.wav"]),
        )  # fmt: skip

    prediction = {"index": torch.tensor([1]), "lines": [{"transcript": "B"}]}
    writers[1].write_on_batch_end(trainer(1), SimpleNamespace(), prediction, None, {}, 0, 0)  # type: ignore[arg-type]
    shares = [(writer._target, writer._rows) for writer in writers]
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.all_gather_object", lambda found, mine: found.__setitem__(slice(2), shares))
    for rank in (1, 0):
        writers[rank].on_predict_end(trainer(rank), SimpleNamespace())  # type: ignore[arg-type]
    assert output.read_text() == '{"file": "b.wav", "transcript": "B"}\n'


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
    with pytest.warns(UserWarning, match="rank0 is of a run with another network, weights or decoder: it is removed"):
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


def test_two_runs_to_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speak(tmp_path / "clips" / "1.wav", 1)

    def another_run(*_: Any) -> None:
        (tmp_path / ".said.jsonl.rank0").unlink()

    monkeypatch.setattr(Killed, "on_predict_epoch_end", another_run, raising=False)
    with pytest.raises(FileNotFoundError, match="another run writes to the same"):
        transcribe(tmp_path, 0, 0)
    assert not (tmp_path / "said.jsonl").exists()
