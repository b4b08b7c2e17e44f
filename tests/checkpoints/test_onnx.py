"""ONNX is written where onnxruntime computes the same, and nothing is where it does not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from d2v_lightning import AudioEncoder, Backbone, ImageEncoder, TextEncoder, Transformer
from d2v_lightning.checkpoints.onnx import TOLERANCE, _example, export_onnx
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
