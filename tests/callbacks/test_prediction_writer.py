"""PredictionWriter on several ranks: what each of them writes becomes one file, and nothing is lost."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from d2v_lightning.callbacks import PredictionWriter


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
    with pytest.raises(SystemExit, match="stopped by SIGTERM: no predictions were written"):
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
