"""Where recordings come from: folders, single files and Hugging Face tables, each with its transcripts."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import yaml
from clips import write
from tiny_runs import ROOT

from datamodules import SpeechDataModule
from datamodules.speech.sources import open_split, open_table_split
from datamodules.speech.waveform import (
    read_waveform,
)


def test_librispeech_and_plain_folders(libri: Path) -> None:
    source = open_split(str(libri), "train")
    assert len(source) == 12
    assert source.clips[0].samples == 32000
    assert source.clips[3].text == "HELLO WO"
    everything = open_split(str(libri), "")
    assert len(everything) == 15
    assert np.abs(everything.read(0) - read_waveform(everything.clips[0].file)).max() == 0


def test_a_single_recording_and_transcripts_in_other_encodings(libri: Path) -> None:
    path = write(libri / "alone" / "a.MP3", 1.0, format="MP3")
    source = open_split(str(path), "")
    assert [clip.file for clip in source.clips] == [str(path)]
    transcripts = libri / "alone" / "t.trans.txt"
    transcripts.write_bytes("a CAFÉ\n".encode("utf-8-sig"))
    assert open_split(str(libri), "alone").clips[0].text == "CAFÉ"
    transcripts.write_bytes("a CAFÉ\n".encode("latin-1"))
    with pytest.warns(UserWarning, match=r"1 line\(s\) of .*alone left out: .*t.trans.txt:1: not UTF-8 at character 3"):
        assert open_split(str(libri), "alone").clips[0].text is None


@pytest.mark.parametrize("stored", ["parquet", "disk"])
def test_hugging_face_tables(libri: Path, stored: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    from datasets import Dataset, DatasetDict, Features, Value

    clips = open_split(str(libri), "dev").clips
    features = Features({"audio": {"bytes": Value("binary"), "path": Value("string")}, "text": Value("string")})
    rows = [{"audio": {"bytes": Path(c.name).read_bytes(), "path": None}, "text": c.text} for c in clips]
    table = Dataset.from_list(rows, features=features)
    folder = tmp_path_factory.mktemp("table")
    if stored == "parquet":
        table.to_parquet(folder / "train.parquet")
    else:
        DatasetDict({"train": table}).save_to_disk(str(folder))
    source = open_table_split(str(folder), None, "train")
    assert [(c.samples, c.text) for c in source.clips] == [(c.samples, c.text) for c in clips]
    assert np.array_equal(source.read(1), read_waveform(clips[1].file))
    with pytest.raises(FileNotFoundError, match=r"has no split 'dev': it has train"):
        open_table_split(str(folder), None, "dev")
    with pytest.raises(ValueError, match=r"has no column 'words' \(text_column\), it has audio, text"):
        open_table_split(str(folder), None, "train", "words")
    with pytest.raises(ValueError, match=r"is a Hugging Face data set: set data.dataset to it"):
        open_split(str(folder), "train")


def test_splits_of_a_table_together_keep_sound_and_transcript_together(libri: Path, tmp_path: Path) -> None:
    """As a snapshot of the hub has them, parquet below `data`, and through worker processes that get a copy."""
    from datasets import Dataset, Features, Value

    kept = {}
    for split in ("train", "test"):
        clips = open_split(str(libri), "dev" if split == "train" else "train").clips[:3]
        features = Features({"audio": {"bytes": Value("binary"), "path": Value("string")}, "said": Value("string")})
        rows = [{"audio": {"bytes": Path(c.name).read_bytes(), "path": None}, "said": c.text} for c in clips]
        (tmp_path / "hub" / "data").mkdir(parents=True, exist_ok=True)
        place = tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet"
        Dataset.from_list(rows, features=features).to_parquet(place)
        kept[split] = clips
    data = SpeechDataModule(
        dataset=str(tmp_path / "hub"), text_column="said", train_split=["train", "test"], task="ctc", num_workers=0,
        batch_samples=150_000,
    )  # fmt: skip
    data.setup("fit")
    source = pickle.loads(pickle.dumps(data._sources["train"]))
    wanted = [*kept["train"], *kept["test"]]
    assert [clip.text for clip in source.clips] == [clip.text for clip in wanted]
    for place, clip in enumerate(wanted):
        assert np.array_equal(source.read(place), read_waveform(clip.file))


def test_the_limited_splits_are_read_as_libri_light_packs_them(tmp_path: Path) -> None:
    """`librispeech_finetuning` below the root: six folds of ten minutes in 1h, and 9h, which is the rest of ten hours."""
    packed = tmp_path / "librispeech_finetuning"
    folds = (f"1h/{fold}/{kind}" for fold in range(6) for kind in ("clean", "other"))
    for speaker, part in enumerate((*folds, "9h/clean", "9h/other")):
        name = f"{speaker}-7-0000"
        write(packed / part / str(speaker) / "7" / f"{name}.flac", 1.0)
        (packed / part / str(speaker) / "7" / f"{speaker}-7.trans.txt").write_text(f"{name} A B\n")
    (packed / "phones").mkdir()
    for recipe, clips in (("10m", 2), ("1h", 12), ("10h", 14), ("v2_10h_large", 14)):
        settings = yaml.safe_load((ROOT / f"configs/finetune/librispeech_{recipe}.yaml").read_text())
        split = settings["data"]["init_args"]["train_split"]
        data = SpeechDataModule(root=str(tmp_path), train_split=split, task="ctc", num_workers=0)
        assert len(data._open("train")) == clips, recipe
