"""`python -m d2v_lightning.features`: what the network says, in each format, restartable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from golden_case import GoldenCase
from PIL import Image
from safetensors.torch import load_file

from d2v_lightning import features, load_backbone


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for number, length in enumerate((8000, 5000, 6000)):
        soundfile.write(tmp_path / f"{number}.wav", generator.normal(size=length) * 0.1, 16_000)
    return GoldenCase("audio_padded").write_official_file(tmp_path)


def command(checkpoint: Path, pattern: str, out: str, *options: str) -> list[str]:
    folder = checkpoint.parent
    return [str(folder / pattern), "--checkpoint", str(checkpoint), "--out", str(folder / out), *options]


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


def test_a_stopped_command_goes_on(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(features, "PART", 1)
    seen: list[str] = []
    look = features._look

    def stops(backbone: object, sample: features.Sample, args: object) -> torch.Tensor:
        seen.append(Path(sample.name).name)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return look(backbone, sample, args)  # type: ignore[arg-type]

    monkeypatch.setattr(features, "_look", stops)
    assert features.main(command(speech, "*.wav", "out.npy")) == 130
    assert features.main(command(speech, "*.wav", "out.npy", "--raw")) == 2
    assert "is left of another command" in capsys.readouterr().err
    assert features.main(command(speech, "*.wav", "out.npy")) == 0
    assert seen == ["0.wav", "1.wav", "2.wav", "2.wav"]
    assert features.main(command(speech, "*.wav", "whole.npy")) == 0
    assert np.array_equal(np.load(tmp_path / "out.npy"), np.load(tmp_path / "whole.npy"))
    assert not list(tmp_path.glob("*.parts"))


def test_pictures_and_lines_of_text(tmp_path: Path) -> None:
    pictures = GoldenCase("vision_shared_relpos").write_official_file(tmp_path)
    Image.new("L", (50, 30), 90).save(tmp_path / "grey.png")
    assert features.main(command(pictures, "*.png", "pictures.npy")) == 0
    assert np.load(tmp_path / "pictures.npy").shape == (1, 1, load_backbone(pictures).dim)

    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    text = GoldenCase("text_padded").write_official_file(tmp_path)
    ids = {token: number for number, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "a", "b"])}
    plain = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=plain).save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "lines.txt").write_text("a b\n\nb a b\n")
    options = ["--tokenizer", str(tmp_path / "tokenizer"), "--frames"]
    assert features.main(command(text, "lines.txt", "lines.safetensors", *options)) == 0
    found = load_file(tmp_path / "lines.safetensors")
    assert {name.rpartition(":")[2]: array.shape[1] for name, array in found.items()} == {"1": 2, "3": 3}
    expected = load_backbone(text).features(torch.tensor([[4, 5]]), layers=[-1]).layers[0]
    torch.testing.assert_close(found[f"{tmp_path / 'lines.txt'}:1"], expected)


@pytest.mark.parametrize(
    ("pattern", "out", "options", "message"),
    [
        ("*.mp3", "a.npy", [], "no file matches"),
        ("*.wav", "a.txt", [], "it must end in .npy"),
        ("*.wav", "a.npy", ["--frames"], "which .npy cannot hold"),
        ("*.wav", "a.npy", ["--layers", "9"], "the trunk has blocks 0 to 2"),
        ("bad", "a.npy", [], "bad: "),
        ("short", "a.npy", [], "too short: 20 samples"),
        ("*.wav", "0.wav.npy", [], "0.wav.npy exists"),
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
