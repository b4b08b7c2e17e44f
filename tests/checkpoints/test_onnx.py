"""ONNX is written where onnxruntime computes the same, and nothing is where it does not; it says how it is to be used."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from d2v_lightning import (
    AudioEncoder,
    Backbone,
    GLUEClassifier,
    ImageClassifier,
    ImageEncoder,
    SpeechCTC,
    TextEncoder,
    Transformer,
)
from d2v_lightning.checkpoints.onnx import TOLERANCE, _example, export_onnx, facts
from d2v_lightning.support.errors import UserError


def network() -> Backbone:
    torch.manual_seed(0)
    return Backbone(ImageEncoder(8, 4, 1, 8), Transformer(8, 1, 2, dropout=0.5))


@pytest.mark.parametrize(("off", "written"), [(0.0, True), (0.5 * TOLERANCE, True), (2 * TOLERANCE, False)])
def test_a_file_is_there_only_where_it_computes_the_same(
    off: float, written: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exporter and onnxruntime are played by the network itself, with an error."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    module = network().train()
    sizes: list[int] = []

    def run(_: Any, feed: dict[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        assert not module.training
        sizes.append(len(feed["inputs"]))
        return [(module(torch.from_numpy(feed["inputs"])) + off).numpy()]

    monkeypatch.setattr("d2v_lightning.checkpoints.onnx._annotate", lambda path, said: None)
    monkeypatch.setattr(torch.onnx, "export", lambda module, args, path, **_: Path(path).write_text("a network"))
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda path, providers: SimpleNamespace(run=run))
    if written:
        export_onnx(module, tmp_path / "a.onnx")
        assert sizes == [2, 3], "two sizes of a batch"
    else:
        with pytest.raises(UserError, match=r"onnxruntime computes something else, by 0\.0002"):
            export_onnx(module, tmp_path / "a.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"] * written
    assert module.training, "as it was"


def said_by(path: Path) -> dict[str, Any]:
    """As docs/checkpoints.md reads it."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    return {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}


def test_a_file_says_what_its_inputs_must_be_and_not_where_the_code_lay(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = ImageClassifier(2, network(), class_names=["caf\u00e9", "x"], mean=[0.25], std=[0.5])
    model.backbone.licence = "mit"
    export_onnx(model, tmp_path / "a.onnx")
    assert said_by(tmp_path / "a.onnx") == {
        "outputs": "logits",
        "licence": "mit",
        "class_names": ["caf\u00e9", "x"],
        "image_size": [8, 8],
        "channels": 1,
        "mean": [0.25],
        "std": [0.5],
    }
    props = {entry.key: json.loads(entry.value) for entry in onnx.load(tmp_path / "a.onnx").metadata_props}
    assert props == said_by(tmp_path / "a.onnx")
    written = (tmp_path / "a.onnx").read_bytes()
    for folder in (Path(__file__).parents[2], Path(torch.__file__).parents[1]):
        assert bytes(folder) not in written
    assert b".py" not in written


def test_what_each_kind_of_model_says() -> None:
    assert facts(network()) == {"outputs": "features", "image_size": [8, 8], "channels": 1}
    sound = Backbone(AudioEncoder(16, [(8, 10, 5)], position_groups=4), Transformer(16, 1, 2, norm="post"))
    assert facts(sound) == {"outputs": "features", "sample_rate": 16_000}
    assert facts(sound, normalize=False)["normalize"] is False
    letters = SpeechCTC(sound, vocabulary=["<blank>", "|", "a"], normalize=True)
    assert facts(letters, normalize=False) == {
        "outputs": "log probabilities of letters",
        "sample_rate": 16_000,
        "normalize": True,
        "vocabulary": ["<blank>", "|", "a"],
    }
    text = Backbone(TextEncoder(8, 30, 20, mask_id=29), Transformer(8, 1, 2))
    text.tokenizer = {"json": "{}"}
    sentences = GLUEClassifier("custom", 2, backbone=text, class_names=["no", "yes"])
    assert facts(sentences) == {"outputs": "logits", "max_tokens": 20, "tokenizer": "{}", "class_names": ["no", "yes"]}


def test_examples_are_what_each_encoder_reads() -> None:
    image, names = _example(network().encoder, 2, 1.0)
    assert (image.shape, names) == ((2, 1, 8, 8), {0: "batch"})
    sound, names = _example(AudioEncoder(16, [(8, 10, 5)], position_groups=4), 3, 1.5)
    assert (sound.shape, names) == ((3, 24_000), {0: "batch", 1: "samples"})
    text, names = _example(TextEncoder(8, 30, 20, mask_id=29), 2, 1.5)
    assert (text.shape, names) == ((2, 15), {0: "batch", 1: "tokens"})
    assert 4 <= int(text.min()) <= int(text.max()) < 30
    with pytest.raises(UserError, match="no ONNX for a Linear"):
        _example(nn.Linear(1, 1), 1, 1.0)
