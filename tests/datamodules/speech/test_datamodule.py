"""SpeechDataModule: every source, batches within their budget, masks, exact resume, and one line for each mistake."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from d2v_lightning.nn.encoders.audio import feature_lengths
from d2v_lightning.support.errors import UserError
from datamodules import SpanMaskCollator, SpeechDataModule, TranscriptCollator
from datamodules.shared import samplers as samplers_module
from datamodules.shared.budget_batches import BudgetBatchSampler
from datamodules.shared.files import FolderGoneError
from datamodules.speech.keyed_clips import KeyedClips
from datamodules.speech.sources import SpeechSource, open_split, open_table_split
from datamodules.speech.waveform import (
    UNREADABLE,
    Recording,
    measure,
    normalise,
    read_waveform,
    samples_at_16k,
    stream_waveform,
)

CONVS = [(8, 10, 5), (8, 8, 8), (8, 8, 8)]


def write(path: Path, seconds: float, rate: int = 16000, seed: int = 0, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.1 * np.random.default_rng(seed).standard_normal(int(seconds * rate))
    soundfile.write(path, wave, rate, **options)
    return path


@pytest.fixture
def libri(tmp_path: Path) -> Path:
    """LibriSpeech's layout: 12 clips of 2 to 4 seconds in `train`, 3 in `dev`."""
    for split, count, speaker in (("train", 12, 1), ("dev", 3, 2)):
        lines = []
        for number in range(count):
            name = f"{speaker}-9-{number:04d}"
            write(tmp_path / split / str(speaker) / "9" / f"{name}.flac", 2.0 + 2.0 * number / count, seed=number)
            lines.append(f"{name} {'HELLO WORLD'[: 5 + number % 6].strip()}")
        (tmp_path / split / str(speaker) / "9" / f"{speaker}-9.trans.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def module(root: Path, **options: Any) -> SpeechDataModule:
    usual = {"train_split": "train", "batch_samples": 150_000, "num_workers": 0}
    data = SpeechDataModule(root=str(root), **{**usual, **options})
    data.setup("fit")
    return data


def test_librispeech_and_plain_folders(libri: Path) -> None:
    source = open_split(str(libri), "train")
    assert len(source) == 12
    assert source.clips[0].samples == 32000
    assert source.clips[3].text == "HELLO WO"
    everything = open_split(str(libri), "")
    assert len(everything) == 15
    assert np.abs(everything.read(0) - read_waveform(everything.clips[0].file)).max() == 0


@pytest.mark.parametrize("letters", [True, False])
def test_fairseq_manifests(libri: Path, letters: bool) -> None:
    clips = open_split(str(libri), "dev").clips
    rows = [f"{Path(clip.name).relative_to(libri)}\t{clip.samples}" for clip in clips]
    (libri / "valid.tsv").write_text("\n".join([str(libri), *rows]) + "\n")
    if letters:
        (libri / "valid.ltr").write_text("H E L L O |\nH I | Y O U |\nA |\n")
    else:
        (libri / "valid.wrd").write_text("HELLO\nHI YOU\nA\n")
    source = open_split(str(libri), "valid")
    assert [clip.text for clip in source.clips] == ["HELLO", "HI YOU", "A"]
    (libri / "valid.ltr").write_text("A |\n")
    with pytest.raises(ValueError, match="lists 3 clips, the transcripts beside it are 1"):
        open_split(str(libri), "valid")
    (libri / "valid.tsv").write_text(f"{libri}\nclip.flac 12\n")
    with pytest.raises(ValueError, match=r"valid.tsv:2 is not '<path><TAB><samples>'"):
        open_split(str(libri), "valid")


def test_json_lines(libri: Path) -> None:
    write(libri / "a.wav", 1.0)
    (libri / "some.jsonl").write_text('{"audio": "a.wav", "text": "hi"}\n{"audio": "a.wav"}\n')
    source = open_split(str(libri), "some")
    assert [(clip.samples, clip.text) for clip in source.clips] == [(16000, "hi"), (16000, None)]
    for bad in ('{"sound": "a.wav"}', '{"audio": "a.wav", "text": 7}', '["a.wav"]', '{"audio": {}}', "a.wav"):
        (libri / "some.jsonl").write_text('{"audio": "a.wav"}\n' + bad + "\n")
        with pytest.warns(UserWarning, match=r"1 line\(s\) of .* left out: .*some.jsonl:2 is not a line like"):
            assert len(open_split(str(libri), "some")) == 1
    (libri / "some.jsonl").write_text('{"audio_filepath": "a.wav", "offset": 0, "duration": 1.0}\n')
    assert len(open_split(str(libri), "some")) == 1
    for piece in ('"offset": 0.5', '"offset": 0, "duration": 0.5'):
        (libri / "some.jsonl").write_text(f'{{"audio_filepath": "a.wav", {piece}}}\n')
        with pytest.raises(ValueError, match=r"some.jsonl:1 is a piece of .*a.wav \(offset 0"):
            open_split(str(libri), "some")
    (libri / "some.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"some.jsonl is empty"):
        open_split(str(libri), "some")


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


@pytest.mark.filterwarnings("ignore:.* left out")
def test_names_and_transcripts_are_matched_whatever_bytes_they_are_written_in(tmp_path: Path) -> None:
    composed, decomposed, latin = "caf\u00e9", "cafe\u0301", os.fsdecode(b"caf\xe8")
    for folder, stem in (("a", composed), ("b", decomposed), ("c", latin)):
        write(tmp_path / folder / "plain.wav", 1.0).rename(tmp_path / folder / f"{stem}.wav")
        line = f"{stem} W\u00d6RTER".encode(errors="surrogateescape")
        other = (decomposed if stem == composed else composed).encode() + b" W\xc3\x96RTER"
        (tmp_path / folder / "t.trans.txt").write_bytes((line if stem == latin else other) + b"\n")
        assert [clip.text for clip in open_split(str(tmp_path), folder).clips] == ["W\u00d6RTER"]
        assert len(open_split(str(tmp_path), folder).read(0)) == 16000
    names = [f"a/{decomposed}.wav", f"b/{composed}.wav", f"c/{latin}.wav"]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps({"audio": name, "text": "\u00e9"}) + "\n" for name in names))
    (tmp_path / "raw.tsv").write_bytes(
        f"{tmp_path}\r\n\r\n".encode()
        + b"".join(name.encode(errors="surrogateescape") + b"\t16000\r\n" for name in names)
    )
    for manifest in ("all", "raw"):
        assert [clip.samples for clip in open_split(str(tmp_path), manifest).clips] == [16000] * 3


def test_one_bad_line_of_a_manifest_is_left_out_and_named(tmp_path: Path) -> None:
    for name in "abcd":
        write(tmp_path / f"{name}.wav", 1.0)
    lines = [
        b'{"audio": "a.wav", "text": "a\xe2\x80\xa8b"}', b'{"audio": "b.wav", "text": "\\ud83d"}', b"", b'{"audio": "a.wav',
        b'{"audio": "gone.wav"}', b'{"audio": "a.wav", "text": "a\xe2\x80\xa8b"}', b'{"audio": "b.wav", "text": "caf\xe9"}',
        f'{{"audio": "{tmp_path}/c.wav", "text": null}}'.encode(),
        b'{"audio_filepath": "b.wav", "offset": 0.5, "duration": 0.2}', b'{"audio": "' + b"x" * 300 + b'.wav"}',
        b'{"audio": "a\\u0000.wav"}', b"[" * 100_000, b'{"audio": "d.wav", "text": "last"}',
    ]  # fmt: skip
    (tmp_path / "m.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines))
    with pytest.warns(UserWarning, match="left out") as said:
        clips = open_split(str(tmp_path), "m").clips
    assert [(Path(clip.name).name, clip.text) for clip in clips] == [
        ("a.wav", "a\u2028b"),
        ("c.wav", None),
        ("d.wav", "last"),
    ]
    files, of_lines = (str(warning.message) for warning in said)
    assert files.startswith(
        f"3 file(s) of {tmp_path}/m.jsonl left out, unreadable: {tmp_path}/gone.wav: there is no such"
    )
    assert of_lines.startswith(f"6 line(s) of {tmp_path}/m.jsonl left out: ")
    assert [f"m.jsonl:{number} is" in of_lines for number in range(1, 14)] == [
        number in (2, 4, 6, 7, 9, 12) for number in range(1, 14)
    ]
    rows = ["", "a.wav\t16000", "b.wav 16000", "b.wav\tmany", "\t5", "d.wav\t16000", "b.wav\t16000"]
    (tmp_path / "t.tsv").write_text("\n".join([str(tmp_path), *rows]) + "\n\n")
    (tmp_path / "t.wrd").write_bytes(b"one\ntwo\nthree\nfour\ncaf\xe9\nsix \xc3\xa9\n\n")
    with pytest.warns(UserWarning, match=r"4 line\(s\) .*t.wrd:5: not UTF-8 at byte 3; .*t.tsv:4 .*t.tsv:5 .*t.tsv:6 "):
        clips = open_split(str(tmp_path), "t").clips
    assert [(Path(clip.name).name, clip.text) for clip in clips] == [("a.wav", "one"), ("b.wav", "six \u00e9")]
    (tmp_path / "t.tsv").write_text("a.wav\t16000\nb.wav\t16000\n")
    with pytest.raises(ValueError, match=r"t.tsv:1 is a row: the first line of a manifest is the folder"):
        open_split(str(tmp_path), "t")
    (tmp_path / "x.trans.txt").write_text("a ONE\na TWO\nb FINE\nb FINE\n")
    with pytest.warns(UserWarning, match=r"1 line\(s\) .*x.trans.txt:2: another transcript of a"):
        texts = [clip.text for clip in open_split(str(tmp_path), "").clips]
    assert texts == [None, "FINE", None, None]
    with pytest.warns(UserWarning, match=r"3 of 4 clips of the train split left out, without a transcript: .*a\.wav"):
        assert len(module(tmp_path, train_split="", task="ctc")._sources["train"]) == 1


def test_letters_that_capitals_make_one_are_said(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", 3.0)
    (tmp_path / "x.trans.txt").write_text("a i\u011fne \u0131\u015f\u0131k\n")
    with pytest.warns(UserWarning, match=r"letters i and \u0131, which data.upper makes one"):
        module(tmp_path, train_split="", task="ctc")


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


def test_a_manifest_is_read_from_where_it_lies(libri: Path) -> None:
    clip = open_split(str(libri), "dev").clips[0]
    (libri / "near.tsv").write_text(f".\n{Path(clip.file).relative_to(libri)}\t{clip.samples}\n")
    assert np.array_equal(open_split(str(libri), "near").read(0), read_waveform(clip.file))


@pytest.mark.parametrize(
    ("rate", "channels", "suffix"), [(8000, 1, "wav"), (44100, 2, "flac"), (22050, 1, "ogg"), (48000, 1, "mp3")]
)
def test_rates_channels_and_formats(rate: int, channels: int, suffix: str, tmp_path: Path) -> None:
    times = np.arange(rate) / rate
    wave = np.stack([0.5 * np.sin(2 * np.pi * 440 * times)] * channels, axis=1)
    soundfile.write(tmp_path / f"a.{suffix}", wave, rate)
    read = read_waveform(str(tmp_path / f"a.{suffix}"))
    assert len(read) == pytest.approx(samples_at_16k(rate, rate), abs=2000 if suffix == "mp3" else 0)
    peak = np.abs(np.fft.rfft(read[2000:14000])).argmax() * 16000 / 12000
    assert peak == pytest.approx(440, abs=2)
    assert normalise(read).std() == pytest.approx(1.0, abs=1e-3)
    assert not normalise(np.zeros(100, np.float32)).any(), "silence stays silence"


def test_every_batch_is_within_budget_and_an_epoch_covers_every_clip_once() -> None:
    lengths = np.random.default_rng(0).integers(16000, 320000, 500).tolist()
    sampler = BudgetBatchSampler(lengths, 1_000_000)
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        assert sorted(index for batch in batches for _, index in batch) == list(range(500))
        assert all(len(batch) * max(lengths[index] for _, index in batch) <= 1_000_000 for batch in batches)
    assert sampler.padding_ratio < 0.05
    orders = [[batch[0][1] for batch in (sampler.set_epoch(epoch), list(sampler))[1]] for epoch in (0, 1)]
    assert orders[0] != orders[1]
    with pytest.raises(ValueError, match=r"budget 100 is smaller than the longest clip"):
        BudgetBatchSampler(lengths, 100)


def test_no_clip_is_left_alone_where_two_fit() -> None:
    sampler = BudgetBatchSampler([100] * 9, 400)
    assert sorted(map(len, sampler.batches)) == [2, 3, 4]
    assert sorted(index for batch in sampler.batches for index in batch) == list(range(9))
    assert [len(batch) for batch in BudgetBatchSampler([10, 10, 10, 90], 100).batches] == [3, 1], "two do not fit"


def test_of_a_long_recording_only_the_crop_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, rate in enumerate((16000, 22050)):
        write(tmp_path / f"{number}.wav", 60.0, rate, seed=number)
    options: dict[str, Any] = {"train_split": "", "max_seconds": 3.0, "batch_samples": 96_000}
    read: list[tuple[int, int | None]] = []
    reader = SpeechSource.read

    def counted(source: SpeechSource, index: int, begin: int = 0, end: int | None = None) -> Any:
        read.append((begin, end))
        return reader(source, index, begin, end)

    monkeypatch.setattr(SpeechSource, "read", counted)
    for normalised in (False, True):
        data = module(tmp_path, normalize=normalised, **options)
        loader = data.train_dataloader()
        (batch,) = loader
        source = data._sources["train"]
        assert batch["inputs"].shape == (2, 48_000)
        for row, index in zip(batch["inputs"].numpy(), batch["index"].tolist(), strict=True):
            whole = reader(source, index)
            start = loader.data.crops.start((0, index), len(whole), 48_000)  # type: ignore[attr-defined]
            crop = whole[start : start + 48_000]
            if normalised:
                np.testing.assert_allclose(row, normalise(crop), atol=0.05)
                assert np.corrcoef(row, crop)[0, 1] > 0.99999
            elif index == 0:
                np.testing.assert_array_equal(row, crop)
            else:
                np.testing.assert_allclose(row, crop, rtol=0, atol=2e-6)
        (again,) = module(tmp_path, normalize=normalised, **options, num_workers=1).train_dataloader()
        assert torch.equal(batch["inputs"], again["inputs"])
        assert torch.equal(batch["mask"], again["mask"])
    assert [(end or 0) - begin for begin, end in read] == [48_000] * 2 + [40 * 16_000] * 2


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


def test_ranks_share_the_batches_equally(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = list(range(1000, 1100))
    for shuffle in (True, False):
        seen: list[int] = []
        counts = []
        for rank in range(3):
            monkeypatch.setattr(samplers_module, "world", lambda rank=rank: (rank, 3))
            monkeypatch.setattr("datamodules.shared.budget_batches.world", lambda rank=rank: (rank, 3))
            batches = list(BudgetBatchSampler(lengths, 7000, shuffle=shuffle))
            counts.append(len(batches))
            seen += [index for batch in batches for _, index in batch]
        assert len(set(counts)) == 1
        assert len(set(seen)) == (len(seen) if shuffle else 100)


def test_published_batches_are_cropped_to_their_shortest_clip_and_hide_alike(libri: Path) -> None:
    data = module(libri)
    batches = list(data.train_dataloader())
    assert len(batches) > 1
    for batch in batches:
        assert "padding_mask" not in batch
        frames = feature_lengths(batch["inputs"].shape[1])
        counts = batch["mask"].sum(dim=-1)
        assert (counts == counts[0, 0]).all()
        assert counts[0, 0] / frames == pytest.approx(0.49, abs=0.02)
        assert len(batch["hidden"]) == int(counts.sum())
        clip = batch["inputs"][0]
        assert clip.std() == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(("ratio", "masks"), [(None, 1), (0.5, 4)])
def test_padding_is_never_scored_and_rows_stay_equal_for_several_masks(ratio: float | None, masks: int) -> None:
    collate = SpanMaskCollator(
        mask_length=5, mask_ratio=ratio, num_masks=masks, conv_layers=CONVS, crop_to_shortest=False
    )
    samples = [{"inputs": torch.randn(size), "key": (0, size), "index": size} for size in (40000, 30000, 9000)]
    batch = collate(samples)
    frames = feature_lengths(torch.tensor([40000, 30000, 9000]), CONVS)
    length = batch["mask"].shape[2]
    columns, rows = batch["hidden"] % length, batch["hidden"] // (masks * length)
    assert (columns < frames[rows]).all()
    if masks > 1:
        assert len(set(batch["mask"].sum(dim=-1).flatten().tolist())) == 1
        assert batch["visible"].shape[:2] == (3, masks)
    again = collate(samples[2:])
    count = int(frames[2])
    assert torch.equal(again["mask"][0, :, :count], batch["mask"][2, :, :count]), (
        "a mask is a function of the clip alone"
    )
    assert not torch.equal(collate([{**samples[2], "key": (1, 9000)}])["mask"], again["mask"])


def test_of_a_clip_of_few_frames_something_stays_visible() -> None:
    collate = SpanMaskCollator(mask_length=5, mask_ratio=0.9, num_masks=2, conv_layers=CONVS, crop_to_shortest=False)
    short = next(size for size in range(400, 4000) if feature_lengths(size, CONVS) == 2)
    batch = collate([{"inputs": torch.randn(size), "key": (0, size), "index": size} for size in (40000, short)])
    assert batch["mask"][1, :, :2].sum(dim=-1).tolist() == [1, 1]
    assert len(set(batch["mask"].sum(dim=-1).flatten().tolist())) == 1


def test_time_and_channel_masks_and_labels() -> None:
    collate = TranscriptCollator(["<blank>", "|", "A", "B"], 48, 0.5, 10, 0.25, 64, CONVS)
    samples = [
        {"inputs": torch.randn(n), "key": (0, n), "index": 0, "text": text}
        for n, text in ((40000, "AB  A"), (20000, "B"))
    ]
    batch = collate(samples)
    assert batch["labels"].tolist() == [[2, 3, 1, 2], [3, 0, 0, 0]]
    assert batch["label_lengths"].tolist() == [4, 1]
    frames = feature_lengths(20000, CONVS)
    assert not batch["mask"][1, 0, frames:].any()
    assert batch["mask"][1, 0, :frames].any()
    assert 0 < batch["channel_mask"][0].sum() < 24


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


def test_clips_that_are_broken_after_all_are_replaced_and_named(libri: Path) -> None:
    source = open_split(str(libri), "train")
    Path(source.clips[4].file).write_bytes(b"gone")
    sample = KeyedClips(source)[(0, 4)]
    assert sample["index"] == 3, "the next shorter one"
    assert sample["unreadable"][0].startswith(source.clips[4].name)


def test_in_evaluation_what_is_broken_is_left_out_and_no_clip_counts_twice(libri: Path) -> None:
    data = module(libri, val_split="dev", task="ctc", batch_samples=64_000)
    broken = data._sources["val"].clips[1]
    Path(broken.file).write_bytes(b"gone")
    with pytest.warns(UserWarning, match=f"1 unreadable file.*{Path(broken.name).name}"):
        batches = list(data.val_dataloader())
    assert sorted(int(index) for batch in batches for index in batch["index"]) == [0, 2]
    masked = TranscriptCollator(["<blank>", "|"])([{"unreadable": ["a: gone"]}])
    assert masked == {"unreadable": ["a: gone"]}


@pytest.mark.parametrize("replace", [True, False])
def test_a_vanished_folder_of_recordings_is_not_replaced_by_others(libri: Path, replace: bool) -> None:
    clips = KeyedClips(open_split(str(libri), ""), replace=replace)
    shutil.rmtree(libri / "dev")
    dev = [index for index, clip in enumerate(clips.source.clips) if "/dev/" in clip.name]
    assert [index for index in range(len(clips)) if index not in dev and "inputs" not in clips[index]] == []
    for index in dev:
        with pytest.raises(
            FolderGoneError, match=r"/dev/2/9 cannot be read .* though it held data when the run started"
        ):
            clips[index]


def test_many_recordings_in_a_row_that_are_gone_end_the_run(libri: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.shared.files.GONE_IN_A_ROW", 3)
    clips = KeyedClips(open_split(str(libri), "train"), replace=False)
    for index in (0, 1, 3, 4, 5):
        Path(clips.source.clips[index].file).unlink()
    assert ["inputs" in clips[index] for index in range(5)] == [False, False, True, False, False]
    with pytest.raises(
        FolderGoneError, match=r"3 files in a row are gone, the last is .*1-9-0005\.flac: there is no such"
    ):
        clips[5]


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


def test_a_truncated_recording_is_replaced_and_named_and_one_longer_than_its_header_is_cut(libri: Path) -> None:
    source = open_split(str(libri), "train")
    whole = write(libri / "long.flac", 4.0).read_bytes()
    Path(source.clips[4].file).write_bytes(whole[:22] + (128_000).to_bytes(4, "big") + whole[26:])  # promises 8 s
    promised = source.clips[5].samples
    source.clips[5] = source.clips[5]._replace(samples=promised - 100)
    sample = KeyedClips(source)[(0, 4)]
    assert sample["index"] != 4
    assert sample["unreadable"][0].startswith(f"{source.clips[4].name}: truncated, ")
    assert len(KeyedClips(source)[(0, 5)]["inputs"]) == promised - 100


FORMATS = [
    ("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "GSM610"), ("WAVEX", "PCM_24"), ("RF64", "PCM_16"), ("W64", "PCM_16"),
    ("AIFF", "PCM_16"), ("AU", "ULAW"), ("CAF", "PCM_16"), ("NIST", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"),
    ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"),
]  # fmt: skip


def content(kind: str, subtype: str, samples: Any, rate: int = 16000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


@pytest.mark.parametrize(("kind", "subtype"), FORMATS)
def test_sound_that_is_cut_off_is_refused_and_a_part_of_a_whole_one_is_that_part(kind: str, subtype: str) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(160_000)
    sound = content(kind, subtype, noise)
    whole = read_waveform(sound)
    assert (len(whole), measure(sound)[0]) == (160_000, 160_000)
    np.testing.assert_array_equal(np.concatenate(list(stream_waveform(sound))), whole)
    with Recording(sound) as recording:
        for begin, end in ((0, 400), (70_001, 90_000), (20_000, 100_000), (159_000, 170_000)):
            np.testing.assert_array_equal(recording.part(begin, end), whole[begin:end])
    for reader in (read_waveform, lambda file: list(stream_waveform(file))):
        with pytest.raises(UNREADABLE):
            reader(sound[: int(0.6 * len(sound))])
    if kind not in ("FLAC", "MP3"):  # whose headers are right, and known to be wrong when the end is read
        with pytest.raises(ValueError, match=r"truncated|malformed"):
            measure(sound[: int(0.6 * len(sound))])
    if subtype != "OPUS":
        other = content(kind, subtype, noise, 22050)
        np.testing.assert_allclose(
            read_waveform(other, 40_000, 60_000), read_waveform(other)[40_000:60_000], rtol=0, atol=2e-6
        )


@pytest.mark.parametrize("rate", [16000, 44100])
def test_a_tag_behind_the_last_frame_of_a_flac_is_not_read(rate: int) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, rate)
    whole = content("FLAC", "PCM_16", noise, rate)
    tagged = whole + b"TAG" + b"Title".ljust(125, b"\0")
    assert (read_waveform(tagged) == read_waveform(whole)).all()
    assert (read_waveform(tagged, 12000, 16000) == read_waveform(whole, 12000, 16000)).all()
    assert (np.concatenate(list(stream_waveform(tagged))) == np.concatenate(list(stream_waveform(whole)))).all()


def test_lengths_that_a_pipe_leaves_open_are_found_and_impossible_headers_are_named() -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(48_000)
    wav, flac, aiff = (content(kind, "PCM_16", noise) for kind in ("WAV", "FLAC", "AIFF"))
    data, ssnd = wav.index(b"data") + 4, aiff.index(b"SSND") + 4
    endless = [
        wav[:4] + size + wav[8:data] + size + wav[data + 4 :]
        for size in (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x00\xf0\xff\x7f")
    ]
    endless += [wav[:data] + b"\0\0\0\0" + wav[data + 4 :], flac[:21] + b"\xf0\0\0\0\0" + flac[26:]]
    endless += [aiff[:4] + b"\xff" * 4 + aiff[8:ssnd] + b"\xff" * 4 + aiff[ssnd + 4 :]]
    for sound in endless:
        assert measure(sound) == (48_000, 16_000)
        whole = read_waveform(sound)
        np.testing.assert_allclose(whole, read_waveform(wav), rtol=0, atol=1e-4)  # formats round differently
        np.testing.assert_array_equal(read_waveform(sound, 20_000, 30_000), whole[20_000:30_000])
    opposite = np.stack([noise, -noise], axis=1)
    for sound, message in (
        (flac[:21] + b"\xff" * 5 + flac[26:], r"promises 68719476735 samples, more than \d+ bytes can hold"),
        (wav[:24] + (1).to_bytes(4, "little") + wav[28:], "sample rate is 1 Hz"),
        (wav[:24] + (2**31 - 1).to_bytes(4, "little") + wav[28:], "sample rate is 2147483647 Hz"),
        (wav[:22] + b"\0\0" + wav[24:], "Channel count is zero"),
        (content("WAV", "PCM_16", np.zeros(0)), "no samples"),
        (b"", r"[Ff]ormat not recogni"),
    ):
        with pytest.raises(ValueError, match=message):
            measure(sound)
    for sound, message in (
        (content("WAV", "FLOAT", np.append(noise, np.nan)), "not finite"),
        (content("WAV", "FLOAT", np.append(noise, -np.inf)), "not finite"),
        (content("WAV", "PCM_16", opposite), "its 2 channels cancel each other"),
    ):
        for reader in (read_waveform, lambda file: read_waveform(file, 40_000, 48_001)):
            with pytest.raises(ValueError, match=message):
                reader(sound)
    assert not read_waveform(content("WAV", "PCM_16", np.zeros((400, 2)))).any(), "silence is none of these"


def test_channels_that_cancel_for_a_moment_are_read_and_those_that_always_do_are_refused() -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(48_000)
    stereo = np.stack([noise, noise], axis=1)
    stereo[16_000:32_000, 1] *= -1
    for kind, subtype in (("WAV", "FLOAT"), ("FLAC", "PCM_16")):
        with Recording(content(kind, subtype, stereo)) as recording:
            assert np.abs(recording.part(17_000, 31_000)).max() < 0.1
            assert np.abs(recording.part(33_000, 48_000)).max() > 0.2
            recording.refuse_cancelled()
    with pytest.raises(UserError, match="its 2 channels cancel each other"):
        read_waveform(content("WAV", "FLOAT", stereo), 17_000, 31_000)


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


def test_letters_of_the_data(libri: Path) -> None:
    data = module(libri, task="ctc")
    assert data.letters()[0] == "L"
    assert set(data.letters()) == set("HELOWR")
    assert json.dumps(data.letters())
    with pytest.raises(ValueError, match=r"12 transcripts of the train split have letters that it lacks: L R "):
        data._refuse_unknown(data._sources["train"], "train", {"H", "E", "O", "W", "D"}, "it", "help it")


def test_letters_of_the_data_are_checked_in_all_splits_before_anything_is_trained(libri: Path) -> None:
    (libri / "dev" / "2" / "9" / "2-9.trans.txt").write_text("2-9-0000 HEX\n2-9-0001 HE\n2-9-0002 LO\n")
    data = module(libri, val_split="dev", task="ctc")
    with pytest.raises(
        ValueError, match=r"1 transcripts of the val split have letters that the training split lacks: X"
    ):
        data.letters()


def test_white_space_and_unicode_forms_make_no_letters(libri: Path) -> None:
    lines = "1-9-0000 E\u0301COLE\tA\u00a0B\n" + "".join(f"1-9-{n:04d} \u00c9\n" for n in range(1, 12))
    (libri / "train" / "1" / "9" / "1-9.trans.txt").write_text(lines)
    data = module(libri, task="ctc")
    assert data._sources["train"].clips[0].text == "\u00c9COLE A B"
    assert set(data.letters()) == set("\u00c9COLEAB")


def test_transcripts_longer_than_their_clips_are_counted_and_named_at_the_start(libri: Path) -> None:
    path = libri / "train" / "1" / "9" / "1-9.trans.txt"
    path.write_text(path.read_text().replace("1-9-0003 HELLO WO", "1-9-0003 " + "OO " * 60))
    with pytest.warns(UserWarning, match=r"1 of 12 transcripts of the train split have more letters .*1-9-0003\.flac"):
        module(libri, task="ctc")
