"""A stream gives the same batches again, also from the middle of an epoch, and shares them out without overlap."""

from __future__ import annotations

import io
import math
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from d2v_lightning.support.errors import UserError
from datamodules import ImageDataModule, SpeechDataModule
from datamodules.speech.collators import SpeechCollator

datasets = pytest.importorskip("datasets")
ROWS, FILES = 24, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Row i is a picture of brightness 10 i and class i % 3; row 5 is broken."""
    folder = tmp_path_factory.mktemp("stream")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    path = folder / "tables"
    pictures: list[Any] = [Image.fromarray(np.full((8, 8), 10 * i, np.uint8)) for i in range(ROWS)]
    pictures[5] = {"bytes": b"broken", "path": "five.png"}
    table = datasets.Dataset.from_dict({"image": pictures, "label": [i % 3 for i in range(ROWS)]}, features=features)
    path.mkdir()
    for number in range(FILES):
        table.shard(FILES, number).to_parquet(path / f"train-{number}.parquet")
    table.to_parquet(path / "validation-0.parquet")
    return path


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` waits five seconds after each pass over parquet, for pyarrow's threads; these passes have 24 rows."""
    monkeypatch.setattr("datasets.iterable_dataset.time.sleep", lambda seconds: None)


def stream(folder: Path, **arguments: Any) -> ImageDataModule:
    data = ImageDataModule(
        **{
            "dataset": str(folder),
            "streaming": True,
            "shuffle_buffer": 4,
            "image_size": 8,
            "patch_size": 2,
            "num_channels": 1,
            "batch_size": 3,
            "num_workers": 0,
            "scale": (1.0, 1.0),
            "colour_jitter": 0.0,
            "mean": [0.0],
            "std": [0.1 / 2.55],
            "crop_share": 1.0,
            **arguments,
        }
    )
    data.setup("fit")
    return data


def rows_of(batch: Any) -> list[int]:
    """Which rows the pictures are: their brightness says."""
    return [round(value) for value in batch["inputs"].mean((1, 2, 3)).tolist()]


@pytest.mark.filterwarnings("ignore:.*unreadable")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume_within_an_epoch_of_a_stream_is_exact(folder: Path, num_workers: int) -> None:
    whole = stream(folder, num_workers=num_workers).train_dataloader()
    whole.sampler.set_epoch(1)
    expected = list(whole)
    assert len(expected) == 8

    resumed = stream(folder, num_workers=num_workers).train_dataloader()
    resumed.load_state_dict({**whole.state_dict(), "epoch": 1, "consumed": 5})
    resumed.sampler.set_epoch(1)
    rest = list(resumed)
    assert len(rest) == 3
    for ours, theirs in zip(rest, expected[5:], strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ("inputs", "mask", "index", "labels"))


@pytest.mark.filterwarnings("ignore:.*unreadable")
def test_an_epoch_of_a_stream_is_a_shuffled_pass(folder: Path) -> None:
    loader = stream(folder).train_dataloader()
    orders = []
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        batches = list(loader)
        orders.append([row for batch in batches for row in rows_of(batch)])
        assert set(orders[-1]) == set(range(ROWS)) - {5}
        assert all(
            label == row % 3
            for batch in batches
            for label, row in zip(batch["labels"].tolist(), rows_of(batch), strict=True)
        )
    assert orders[0] != orders[1]
    assert orders[0] != sorted(orders[0])


@pytest.mark.filterwarnings("ignore:.*unreadable")
def test_workers_and_ranks_share_a_stream(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datamodules.shared import samplers, streaming

    seen: list[int] = []
    for rank in (0, 1):
        monkeypatch.setattr(samplers, "world", lambda rank=rank: (rank, 2))
        monkeypatch.setattr(streaming, "world", lambda rank=rank: (rank, 2))
        loader = stream(folder, num_workers=2).train_dataloader()
        batches = list(loader)
        assert len(batches) == 4
        seen += [row for batch in batches for row in rows_of(batch)]
    assert len(seen) == ROWS
    # One broken row is replaced by its neighbour, so one row comes twice.
    assert len(set(seen)) == ROWS - 1


def test_broken_pictures_of_a_stream_are_named_and_evaluation_is_in_order(folder: Path) -> None:
    data = stream(folder, num_workers=2)
    loader = data.val_dataloader()
    with pytest.warns(UserWarning, match="1 unreadable.*five.png"):
        batches = list(loader)
    assert [row for batch in batches for row in rows_of(batch)] == [0, 1, 2, 3, 4, 6, *range(6, ROWS)]
    assert data.class_names == ["a", "b", "c"]
    with pytest.raises(ValueError, match=r"batch_size 3 x 1 device\(s\) is more than 2 pictures of an epoch"):
        stream(folder, samples_per_epoch=2).train_dataloader()
    with pytest.raises(ValueError, match="a stream cannot be read at will"):
        data.probe_dataloaders()


@pytest.mark.filterwarnings("ignore:.*unreadable")
def test_every_readable_row_counts_once_in_evaluation_on_any_number_of_ranks(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datamodules.shared import samplers, streaming

    seen: dict[int, dict[int, tuple[int, bytes]]] = {}
    for world_size in (1, 2, 3, 6, 7):
        seen[world_size], lengths = {}, []
        for rank in range(world_size):
            monkeypatch.setattr(samplers, "world", lambda rank=rank, size=world_size: (rank, size))
            monkeypatch.setattr(streaming, "world", lambda rank=rank, size=world_size: (rank, size))
            batches = list(stream(folder).val_dataloader())  # type: ignore[arg-type]
            lengths.append(len(batches))
            for batch in batches:
                counts = ~batch.get("repeated", torch.zeros(len(batch["inputs"]), dtype=torch.bool))
                for row, index, mask, own in zip(
                    rows_of(batch), batch["index"].tolist(), batch["mask"], counts.tolist(), strict=True
                ):
                    if own:
                        assert row not in seen[world_size]
                        seen[world_size][row] = index, mask.numpy().tobytes()
        assert lengths == [math.ceil(math.ceil(ROWS / world_size) / 3)] * world_size, "as many on every rank"
        assert seen[world_size].keys() == set(range(ROWS)) - {5}
        assert seen[world_size] == seen[1], "the same masks too"


def test_a_stream_without_rows_is_refused_and_not_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datamodules.shared import streaming

    empty = SimpleNamespace(shuffle=lambda **_: [])
    with pytest.raises(UserError, match="the stream has no rows for device 0 of 1"):
        next(iter(streaming.Stream(empty, "image", batch_size=2, seed=0, shuffle=True, buffer=4)))
    monkeypatch.setattr(streaming, "world", lambda: (0, 30))
    with pytest.raises(UserError, match="24 rows cannot be shared out to 30 devices"):
        stream(folder).val_dataloader()


def test_a_broken_last_row_of_an_evaluation_is_replaced(folder: Path, tmp_path: Path) -> None:
    table = datasets.load_dataset("parquet", data_files=str(folder / "validation-0.parquet"), split="train")
    table = (
        table.cast_column("image", datasets.Image(decode=False))
        .select([3, 4, 5])
        .cast_column("image", datasets.Image())
    )
    table.to_parquet(tmp_path / "train-0.parquet")
    table.to_parquet(tmp_path / "validation-0.parquet")
    with pytest.warns(UserWarning, match="1 unreadable.*five.png"):
        (batch,) = list(stream(tmp_path, samples_per_epoch=3).val_dataloader())  # type: ignore[arg-type]
    assert rows_of(batch) == [3, 4, 4]
    assert batch["repeated"].tolist() == [False, False, True]


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
