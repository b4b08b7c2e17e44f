"""`python -m d2v_lightning.commands.features`: what the network says, in each format, restartable."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from golden_case import GoldenCase
from PIL import Image
from safetensors.torch import load_file
from tiny import tiny_backbone

from d2v_lightning import ImageClassifier, load_backbone
from d2v_lightning.checkpoints import save_huggingface
from d2v_lightning.checkpoints.content import Content
from d2v_lightning.checkpoints.directory import write_directory
from d2v_lightning.commands import features
from datamodules import ImageDataModule
from datamodules.image.transforms import evaluation_transform


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for number, length in enumerate((8000, 5000, 6000)):
        soundfile.write(tmp_path / f"{number}.wav", generator.normal(size=length) * 0.1, 16_000)
    return GoldenCase("audio_padded").write_official_file(tmp_path)


def command(checkpoint: Path, pattern: str, out: str, *options: str) -> list[str]:
    folder = checkpoint.parent
    paths = [str(folder / pattern), "--checkpoint", str(checkpoint), "--out", str(folder / out)]
    return [*paths, *([] if "--num_workers" in options else ["--num_workers", "0"]), *options]


def test_recordings_in_every_format(speech: Path, tmp_path: Path) -> None:
    layers = ["--layers", "0", "-1"]
    assert features.main(command(speech, "*.wav", "pooled.npy", *layers)) == 0
    assert features.main(command(speech, "*.wav", "pooled.parquet", *layers)) == 0
    assert features.main(command(speech, "*.wav", "frames.safetensors", "--frames", *layers)) == 0
    backbone = load_backbone(speech)
    pooled = np.load(tmp_path / "pooled.npy")
    table = pq.read_table(tmp_path / "pooled.parquet").to_pydict()
    frames = load_file(tmp_path / "frames.safetensors")
    for number in range(3):
        path = tmp_path / f"{number}.wav"
        samples = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
        normal = (samples - samples.mean()) / samples.std(correction=0)
        expected = torch.stack(backbone.features(normal[None], layers=[0, -1]).layers)[:, 0]
        torch.testing.assert_close(frames[str(path)], expected, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(torch.from_numpy(pooled[number]), frames[str(path)].mean(dim=1))
        row = table["name"].index(str(path))
        assert table["layer"][row : row + 2] == [0, -1]
        assert np.allclose(table["features"][row : row + 2], pooled[number])
    assert (tmp_path / "pooled.csv").read_text().splitlines()[1] == f"0,{tmp_path / '0.wav'}"


def test_a_signal_stops_the_command_after_the_batch(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("datamodules.speech.windows.POOL", 1)
    seen: list[int] = []
    predict_step = features.Features.predict_step

    def terminated(self: features.Features, batch: Any, batch_idx: int) -> Any:
        seen.append(int(batch["index"]))
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return predict_step(self, batch, batch_idx)

    monkeypatch.setattr(features.Features, "predict_step", terminated)
    caplog.set_level("INFO")
    with pytest.raises(SystemExit) as stop:
        features.main(command(speech, "*.wav", "out.npy", "--num_workers", "0"))
    assert stop.value.code == 128 + signal.SIGTERM
    assert "SIGTERM: stopped after this batch: the same command goes on from here" in caplog.text
    assert len(seen) == 2
    assert features.main(command(speech, "*.wav", "out.npy", "--num_workers", "0")) == 0
    assert len(seen) == 3


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_stopped_command_goes_on(
    workers: str, speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("datamodules.speech.windows.POOL", 1)
    seen: list[int] = []
    predict_step = features.Features.predict_step

    def stops(self: features.Features, batch: Any, batch_idx: int) -> Any:
        seen.append(int(batch["index"]))
        if len(seen) == 3:
            raise RuntimeError("stopped")
        return predict_step(self, batch, batch_idx)

    monkeypatch.setattr(features.Features, "predict_step", stops)
    with pytest.raises(RuntimeError, match="stopped"):
        features.main(command(speech, "*.wav", "out.npy", "--num_workers", workers))
    assert features.main(command(speech, "*.wav", "out.npy", "--raw")) == 2
    assert "is left of a run with another network, weights, decoder or other settings" in capsys.readouterr().err
    assert features.main(command(speech, "*.wav", "out.npy", "--num_workers", workers)) == 0
    assert len(seen) == 4
    assert seen[2] == seen[3]
    assert features.main(command(speech, "*.wav", "whole.npy", "--num_workers", "0")) == 0
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_pictures_and_lines_of_text(tmp_path: Path) -> None:
    pictures = GoldenCase("vision_shared_relpos").write_official_file(tmp_path)
    Image.new("L", (50, 30), 90).save(tmp_path / "grey.png")
    assert features.main(command(pictures, "", "pictures.npy")) == 0
    assert np.load(tmp_path / "pictures.npy").shape == (1, 1, load_backbone(pictures).dim)

    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    text = GoldenCase("text_padded").write_official_file(tmp_path)
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", "b"]
    plain = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "mask_token": "<mask>"}
    PreTrainedTokenizerFast(tokenizer_object=plain, **special).save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "lines.txt").write_text("a b\n\nb a b\n")
    (tmp_path / "lines.jsonl").write_text('{"text": "a\\nb"}\n')
    options = ["--tokenizer", str(tmp_path / "tokenizer"), "--frames"]
    assert features.main(command(text, "lines.*", "lines.safetensors", *options)) == 0
    found = {name.rpartition("/")[2]: array for name, array in load_file(tmp_path / "lines.safetensors").items()}
    assert {name: array.shape[1] for name, array in found.items()} == {
        "lines.txt:1": 4,
        "lines.txt:3": 5,
        "lines.jsonl:1": 4,
    }
    for name, ids in (("lines.txt:1", [0, 5, 6, 2]), ("lines.txt:3", [0, 6, 5, 6, 2]), ("lines.jsonl:1", [0, 5, 6, 2])):
        expected = load_backbone(text).features(torch.tensor([ids]), layers=[-1]).layers[0]
        torch.testing.assert_close(found[name], expected)


def test_pictures_are_shown_as_the_checkpoint_says(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its features are those of its own test loader; options override it, and each is said."""
    torch.manual_seed(0)
    seen: dict[str, Any] = {"mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3]}
    model = ImageClassifier(2, backbone=tiny_backbone(), mixup=0, cutmix=0, **seen)
    for number in range(5):
        (folder := tmp_path / "data" / "test" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        noise = torch.randint(256, (20, 30, 3), dtype=torch.uint8).numpy()
        Image.fromarray(noise).save(folder / f"{number}.png")
    settings: dict[str, Any] = {"task": "classify", "crop_share": 1.0, "interpolation": "bilinear"}
    tree = {"class_path": "datamodules.ImageDataModule", "init_args": {**settings, "root": "gone", "batch_size": 7}}
    write_directory(Content(model.config, model.state_dict(), "a classifier", None, [], data=tree), tmp_path / "model")
    caplog.set_level("INFO")
    data = ImageDataModule(root=str(tmp_path / "data"), image_size=16, num_workers=0, **settings, **seen)
    data.setup("test")
    (batch,) = list(data.test_dataloader())
    expected = model.backbone.features(batch["inputs"], layers=[-1]).layers[0].mean(dim=1)
    call = [str(tmp_path / "data"), "--checkpoint", str(tmp_path / "model"), "--num_workers", "0", "--batch_size", "2"]
    assert features.main([*call, "--out", str(tmp_path / "x.npy")]) == 0
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "x.npy"))[:, 0], expected, atol=1e-5, rtol=1e-4)
    assert "evaluation of the checkpoint: crop_share 1.0, interpolation bilinear, mean [0.5, 0.4, 0.3]" in caplog.text
    assert features.main([*call, "--out", str(tmp_path / "y.npy"), "--mean", "0.7"]) == 0
    assert "of the checkpoint, and of --mean: crop_share 1.0, interpolation bilinear, mean [0.7, 0.7" in caplog.text
    assert not np.allclose(np.load(tmp_path / "x.npy"), np.load(tmp_path / "y.npy"), atol=1e-2)


def test_pictures_of_a_directory_of_transformers_are_shown_as_it_says(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: dict[str, Any] = {"mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3]}
    model = ImageClassifier(2, backbone=tiny_backbone(), mixup=0, cutmix=0, **seen)
    save_huggingface(model, tmp_path / "theirs", evaluation={"crop_share": 0.8, "interpolation": "bilinear"})
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    noise.save(tmp_path / "1.png")
    caplog.set_level("INFO")
    assert features.main(command(tmp_path / "theirs", "1.png", "x.npy")) == 0
    assert "of the checkpoint: crop_share 0.8, interpolation bilinear, mean [0.5, 0.4, 0.3]" in caplog.text
    shown = evaluation_transform((16, 16), 0.8, *seen.values(), "bilinear")(noise)
    expected = model.backbone.features(shown[None], layers=[-1]).layers[0].mean(dim=1)
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "x.npy"))[0], expected, atol=1e-5, rtol=1e-4)


def classifier() -> ImageClassifier:
    return ImageClassifier(2, backbone=tiny_backbone(), mixup=0, cutmix=0)


@pytest.mark.parametrize(
    ("std", "message"),
    [
        ([0.5, 0.5], "std has 2 values for 3 channels: give one per channel"),
        (0.5, "std is 0.5: it must be a list"),
        ([0.1, 0.1, 0.0], "std is [0.1, 0.1, 0.0]: give numbers above 0"),
        ([0.1, 0.1, float("nan")], "std is [0.1, 0.1, nan]: ImageEncoder needs finite numbers"),
    ],
)
def test_a_stored_normalisation_that_is_none_is_one_line(
    std: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = classifier()
    model.backbone.config["init_args"]["encoder"]["init_args"]["std"] = std
    write_directory(Content(model.config, model.state_dict(), "a classifier", None, []), tmp_path / "model")
    Image.new("RGB", (16, 16)).save(tmp_path / "1.png")
    assert features.main(command(tmp_path / "model", "1.png", "x.npy")) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: {tmp_path / 'model'}: {message}")


def test_a_network_that_does_not_say_what_it_saw_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Numbers on the command line go before; both together leave nothing open."""
    write_directory(Content(tiny_backbone().config, tiny_backbone().state_dict(), "x", None, []), tmp_path / "model")
    Image.new("RGB", (16, 16)).save(tmp_path / "1.png")
    caplog.set_level("INFO")
    said = "does not say what its pictures were normalised with: ImageNet's values are taken"
    assert features.main(command(tmp_path / "model", "1.png", "x.npy", "--std", "0.3")) == 0
    assert said in caplog.text
    assert "mean [0.485, 0.456, 0.406], std [0.3, 0.3, 0.3]" in caplog.text
    caplog.clear()
    assert features.main(command(tmp_path / "model", "1.png", "y.npy", "--std", "0.3", "--mean", "0.1")) == 0
    assert said not in caplog.text
    assert features.main(command(tmp_path / "model", "1.png", "z.npy", "--std", "0", "--mean", "0.1")) == 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"crop_share": "x"}, "run.data.init_args.crop_share is 'x': it must be a number"),
        (
            {"interpolation": "x"},
            "run.data.init_args.interpolation is 'x': it must be one of bicubic, bilinear, nearest",
        ),
        ([1], "run.data.init_args is a list, where a mapping is expected"),
    ],
)
def test_stored_settings_of_another_kind_are_one_line(
    data: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = classifier()
    write_directory(Content(model.config, model.state_dict(), "a classifier", None, []), tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["d2v_lightning"]["data"] = {"class_path": "datamodules.ImageDataModule", "init_args": data}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    Image.new("RGB", (16, 16)).save(tmp_path / "1.png")
    call = [str(tmp_path / "1.png"), "--checkpoint", str(tmp_path / "model"), "--out", str(tmp_path / "x.npy")]
    assert features.main([*call, "--num_workers", "0"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: {tmp_path / 'model'}: {message}")


@pytest.mark.parametrize(
    ("pattern", "out", "options", "message"),
    [
        ("*.mp3", "a.npy", [], "no file matches"),
        ("*.wav", "a.txt", [], "it must end in .npy"),
        ("*.wav", "a.npy", ["--frames"], "which .npy cannot hold"),
        ("*.wav", "a.npy", ["--layers", "9"], "the trunk has blocks 0 to 2"),
        ("bad", "a.npy", [], "nothing was predicted"),
        ("short", "a.npy", [], "nothing was predicted"),
        ("*.wav", "a.npy", ["--modality", "text"], "it is of one modality"),
        ("*.wav", "0.wav.npy", [], "0.wav.npy exists: choose another file (--out FILE), or overwrite it (--overwrite)"),
    ],
)
def test_mistakes_are_one_line(
    speech: Path, pattern: str, out: str, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (speech.parent / "bad").write_bytes(b"no sound")
    (speech.parent / "0.wav.npy").touch()
    soundfile.write(speech.parent / "short", np.zeros(20), 16_000, format="WAV")
    assert features.main(command(speech, pattern, out, *options)) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: ")
    assert message in said
