"""SpeechDataModule: exact resume, splits that are checked before anything is trained, and one line for each mistake."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from clips import module, write

from d2v_lightning.support.errors import UserError
from datamodules import SpeechDataModule, TranscriptCollator
from datamodules.speech.sources import open_split


def test_a_wrong_path_is_said_and_not_looked_for_on_the_hub(libri: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data.root LibriSpeech does not exist: give a folder of recordings"):
        module(Path("LibriSpeech"))
    (libri / "train.jsonl").write_text('{"audio": "a.wav"}\n{"audio": "b.wav"}\n')
    (libri / "train").rename(libri / "other")
    with pytest.raises(
        ValueError, match=r"none of the 2 recordings of .*train.jsonl can be read.*a.wav: there is no such"
    ):
        module(libri)
    (libri / "other" / "1" / "9" / "gone.flac").symlink_to(libri / "nowhere.flac")
    with pytest.warns(UserWarning, match=r"other: 1 link\(s\) lead to nothing: .*gone.flac"):
        assert len(open_split(str(libri), "other")) == 12


def test_a_clip_that_would_be_alone_is_left_out_where_the_targets_need_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        write(tmp_path / f"{number}.wav", 2.0 + 0.1 * number, seed=number)
    model = SimpleNamespace(make_targets=SimpleNamespace(norm_each=("position", "instance")))
    monkeypatch.setattr("datamodules.speech.datamodule.attached_model", lambda data: model)
    data = module(tmp_path, train_split="", val_split="", batch_samples=80_000)
    for loader in (data.train_dataloader, data.val_dataloader):
        with pytest.warns(UserWarning, match=r"1 of 5 clips of the \w+ split left out, because .* needs two: .*4.wav"):
            assert [len(batch["inputs"]) for batch in loader()] == [2, 2]
    with pytest.raises(ValueError, match="no batch of 40000 samples holds 2 clips, which the norm 'position' needs"):
        module(tmp_path, train_split="", batch_samples=40_000).train_dataloader()


def test_a_run_goes_on_where_it_was(libri: Path) -> None:
    whole = module(libri, task="pretrain").train_dataloader()
    batches = [*whole, *(whole.sampler.set_epoch(1), list(whole))[1]]
    for stop in (1, 2, len(whole), len(whole) + 1):
        first = module(libri).train_dataloader()
        seen = []
        for epoch in range(2):
            first.sampler.set_epoch(epoch)
            for batch in first:
                seen.append(batch)
                if len(seen) == stop:
                    break
            if len(seen) == stop:
                break
        state = first.state_dict()
        second = module(libri).train_dataloader()
        second.load_state_dict(state)
        second.sampler.set_epoch(stop // len(whole) if stop % len(whole) else stop // len(whole) - 1)
        rest = list(second)
        for got, expected in zip(rest, batches[stop:], strict=False):
            assert torch.equal(got["inputs"], expected["inputs"])
            assert torch.equal(got["mask"], expected["mask"])
        assert rest


def test_in_evaluation_what_is_broken_is_left_out_and_no_clip_counts_twice(libri: Path) -> None:
    data = module(libri, val_split="dev", task="ctc", batch_samples=64_000)
    broken = data._sources["val"].clips[1]
    Path(broken.file).write_bytes(b"gone")
    with pytest.warns(UserWarning, match=f"1 unreadable file.*{Path(broken.name).name}"):
        batches = list(data.val_dataloader())
    assert sorted(int(index) for batch in batches for index in batch["index"]) == [0, 2]
    masked = TranscriptCollator(["<blank>", "|"])([{"unreadable": ["a: gone"]}])
    assert masked == {"unreadable": ["a: gone"]}


def test_validation_of_pre_training_keeps_the_size_of_its_batches(libri: Path) -> None:
    data = module(libri, val_split="dev")
    Path(data._sources["val"].clips[1].file).write_bytes(b"gone")
    with pytest.warns(UserWarning, match="1 unreadable file"):
        assert [len(batch["inputs"]) for batch in data.val_dataloader()] == [2, 1]


def test_predict_takes_the_test_split_as_test_does(libri: Path) -> None:
    (libri / "some.jsonl").write_text(json.dumps({"audio": "dev/2/9/2-9-0001.flac"}) + "\n")
    for split, count in (("some", 1), ("dev", 3), ("none", 15)):
        data = SpeechDataModule(root=str(libri), test_split=split)
        data.setup("predict")
        assert len(data.predict_paths) == count


def test_a_folder_to_predict_counts_and_names_what_cannot_be_read(libri: Path) -> None:
    bad = next((libri / "dev").rglob("*.flac"))
    bad.write_bytes(b"no sound")
    data = SpeechDataModule(root=str(libri / "dev"), num_workers=0)
    data.setup("predict")
    assert len(data.predict_paths) == 3
    with pytest.warns(UserWarning, match=rf"1 unreadable file\(s\) left out: {bad}: "):
        batches = list(data.predict_dataloader())
    assert sum(len(batch["index"]) for batch in batches) == 2


def test_mistakes_get_one_line(libri: Path, tmp_path: Path) -> None:
    for options, kind, message in (
        ({"train_split": "trian"}, FileNotFoundError, "has no 'trian': it holds dev, train"),
        ({"train_split": None}, ValueError, "set data.train_split"),
        ({"batch_samples": 0}, ValueError, "batch_samples 0"),
        ({"task": "asr"}, ValueError, "task 'asr'"),
        ({"min_seconds": 5.0}, ValueError, "no clip of the train split is left"),
        ({"mask_length": 0}, ValueError, "spans of at least 1"),
        ({"time_mask_prob": 5.0}, ValueError, "mask_prob 5.0"),
        ({"channel_mask_length": -3}, ValueError, "mask_length -3"),
        ({"dataset": "x"}, ValueError, "root '.*' and dataset 'x': set one of them to null"),
    ):
        with pytest.raises(kind, match=message) as error:
            module(libri, **options)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="predict_files is empty: give recordings or folders of them"):
        SpeechDataModule(predict_files=[]).setup("predict")
    (libri / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no readable sound"):
        module(libri, train_split="empty")
    with pytest.raises(ValueError, match=r"batch_samples 1000 is smaller than the longest clip, .* \(3\.8 s\)"):
        module(libri, batch_samples=1000)  # before a run's folder is made
    write(libri / "mute" / "a.wav", 2.0)
    with pytest.raises(ValueError, match=r"1 of 1 clips of the train split have no transcript, the first is .*a\.wav"):
        module(libri, train_split="mute", task="ctc")
    (libri / "bad").mkdir()
    (libri / "bad" / "b.wav").write_bytes(b"RIFF")
    write(libri / "bad" / "c.wav", 2.5)
    with pytest.warns(UserWarning, match=r"1 file\(s\) of .* left out, unreadable: .*b\.wav"):
        assert len(open_split(str(libri), "bad")) == 1
