"""Recordings of a stream: batches within their budget, exactly again; an odd row is named and never ends a run."""

from __future__ import annotations

import io
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import soundfile
import torch

from datamodules import SpeechDataModule
from datamodules.speech.collators import SpeechCollator

pytestmark = pytest.mark.usefixtures("no_waiting")


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Row i is i + 1 tenths of a second of loudness i; row 3 is broken, row 5 has no transcript, row 6 an unknown letter."""
    folder = tmp_path_factory.mktemp("spoken")
    features = datasets.Features(
        {
            "audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
            "text": datasets.Value("string"),
        }
    )
    rows = []
    for number in range(16):
        file = io.BytesIO()
        soundfile.write(file, np.full(1600 * (number + 1), 0.01 * number), 16000, format="WAV", subtype="FLOAT")
        sound = b"broken" if number == 3 else file.getvalue()
        text = None if number == 5 else "ab\tx" if number == 6 else "ab  a"
        rows.append({"audio": {"bytes": sound, "path": f"{number}.wav"}, "text": text})
    table = datasets.Dataset.from_list(rows, features=features)
    for number in range(2):
        table.shard(2, number, contiguous=True).to_parquet(folder / f"train-{number}.parquet")
    return folder


def speech(folder: Path, **arguments: Any) -> SpeechDataModule:
    usual: dict[str, Any] = {
        "dataset": str(folder), "streaming": True, "train_split": "train", "batch_samples": 64_000, "max_seconds": 1.0,
        "min_seconds": 0.2, "normalize": False, "num_workers": 0, "shuffle_buffer": 4,
    }  # fmt: skip
    data = SpeechDataModule(**{**usual, **arguments})
    data.setup("fit")
    return data


@pytest.mark.filterwarnings("ignore:.*unreadable")
def test_recordings_are_streamed_in_batches_within_the_budget_and_exactly_again(spoken: Path) -> None:
    epoch = list(islice(speech(spoken).train_dataloader(), 4))
    assert all(batch["inputs"].numel() <= 64_000 for batch in epoch)
    assert all(batch["mask"].shape[:2] == (4, 1) for batch in epoch)
    heard = {round(100 * float(row.max())) for batch in epoch for row in batch["inputs"]}
    assert len(heard) > 8
    assert not heard & {0, 3}, "the short and the broken one are left out"
    loader = speech(spoken).train_dataloader()
    seen = list(islice(loader, 2))
    again = speech(spoken).train_dataloader()
    again.load_state_dict(loader.state_dict())
    for one, other in zip([*seen, *again], epoch, strict=True):
        assert torch.equal(one["inputs"], other["inputs"])
        assert torch.equal(one["mask"], other["mask"])


@pytest.mark.filterwarnings("ignore:.*unreadable")
def test_transcripts_of_a_stream(spoken: Path) -> None:
    data = speech(spoken, task="ctc", upper=True)
    with pytest.raises(ValueError, match="cannot be searched for its letters"):
        data.letters()
    assert data._stream is not None
    texts = [sample["text"] for sample in islice(data._stream, 30) if sample is not None]
    assert set(texts) == {"AB A", "AB X"}
    with pytest.raises(ValueError, match="the vocabulary lacks X, which are in the transcript 'AB X'"):
        SpeechCollator(vocabulary=["<blank>", "|", "A", "B"])([{"inputs": torch.zeros(400), "text": "AB X"}])


def test_an_empty_cell_is_named_and_other_splits_of_a_stream_are_there(spoken: Path, tmp_path: Path) -> None:
    table = datasets.load_dataset(str(spoken), split="train").select(range(8, 16))
    rows = [{**row, "audio": None if number in (2, 3) else row["audio"]} for number, row in enumerate(table)]
    kept = datasets.Dataset.from_list(rows, features=table.features)
    for split in ("train", "validation"):
        kept.to_parquet(tmp_path / f"{split}-0.parquet")
    with pytest.warns(UserWarning, match=r"2 file\(s\) .*\[validation\]\[2\]: there is no sound in this row"):
        data = speech(tmp_path, val_split="validation", batch_samples=32_000)
    assert [len(batch["inputs"]) for batch in data.val_dataloader()] == [2, 2, 2]
    with pytest.warns(
        UserWarning, match=r"2 unreadable file\(s\) .*: sample \d+ of epoch 0: there is no sound in this row"
    ):
        list(data.train_dataloader())


def test_what_a_stream_of_recordings_needs_is_said(spoken: Path) -> None:
    with pytest.raises(ValueError, match="an epoch of 3 clips is less than one batch on every device, 4 clips"):
        speech(spoken, samples_per_epoch=3).train_dataloader()
    for arguments, message in (
        ({"train_split": ["train"]}, "streaming reads one training split"),
        ({"max_seconds": None}, "max_seconds None: a stream needs it"),
        ({"max_seconds": 5.0}, "no more than batch_samples 64000"),
        ({"shuffle_buffer": 0}, "shuffle_buffer 0"),
    ):
        with pytest.raises(ValueError, match=message):
            speech(spoken, **arguments)
    with pytest.raises(FileNotFoundError, match="has no split 'dev': it has train"):
        speech(spoken, train_split="dev")


def test_one_odd_row_of_recordings_never_ends_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 1 is cut off, 2 names a file that is not there, 3 has no transcript, 4 a letter that the model lacks."""
    file = io.BytesIO()
    soundfile.write(file, 0.1 * np.random.default_rng(0).standard_normal(16_000), 16000, format="WAV")
    good = {"bytes": file.getvalue(), "path": None}
    cut, gone = {"bytes": file.getvalue()[:12_000], "path": "cut.wav"}, {"bytes": None, "path": "/nowhere/gone.wav"}
    audio = [good, cut, gone, good, good, *[good] * 7]
    texts = ["ab", "ab", "ab", None, "\u00e9", *["ab"] * 7]
    features = datasets.Features(
        {
            "audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
            "text": datasets.Value("string"),
        }
    )
    table = datasets.Dataset.from_dict({"audio": audio, "text": texts}, features=features)
    table.to_parquet(tmp_path / "train-0.parquet")
    model = SimpleNamespace(vocabulary=["<blank>", "|", "A", "B"], normalize=False)
    monkeypatch.setattr("datamodules.speech.datamodule.attached_model", lambda data: model)
    data = speech(tmp_path, task="ctc", batch_samples=16_000, samples_per_epoch=24)
    with pytest.warns(UserWarning, match="unreadable") as said:
        batches = list(data.train_dataloader())
    assert all(batch["inputs"].shape == (1, 16_000) and batch["labels"].tolist() == [[2, 3]] for batch in batches)
    named = " ".join(str(warning.message) for warning in said)
    for reason in ("cut.wav: truncated, 37 %", "gone.wav: there is no such file", "no transcript", "lacks: \u00c9"):
        assert reason in named
    monkeypatch.setattr("datamodules.speech.datamodule.attached_model", lambda data: None)
    for row, reason in ((1, "truncated"), (2, "there is no such file")):
        with pytest.warns(UserWarning, match=rf"2 file\(s\) of .*\[{row}\]: .*{reason}"):
            whole = speech(tmp_path, task="ctc", streaming=False)
    assert [clip.text for clip in whole._sources["train"].clips] == ["AB", "\u00c9", *["AB"] * 7]
