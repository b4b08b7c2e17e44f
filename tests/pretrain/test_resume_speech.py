"""Speech that is stopped goes on exactly: crops, masks, buckets and their order, pre-training and CTC; and bf16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import stopped_runs
import torch

from d2v_lightning import AudioEncoder, Backbone, Data2Vec, Optimization, SpeechCTC, Transformer
from d2v_lightning.flavour import pl
from datamodules import SpeechDataModule

CONVS = [[8, 10, 5], [8, 8, 8], [8, 8, 8]]
SMALL = {
    "student.backbone.encoder.dim": 32,
    "student.backbone.encoder.conv_layers": CONVS,
    "student.backbone.encoder.position_groups": 4,
    "student.decoder.dim": 32,
    "student.backbone.transformer.dim": 32,
    "student.backbone.transformer.depth": 2,
    "student.backbone.transformer.num_heads": 2,
    "targets.average_top_k_layers": 1,
    "ema_teacher.anneal_steps": 7,
}


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """17 clips of 1 to 3 seconds with transcripts: a handful of batches."""
    root = tmp_path_factory.mktemp("spoken")
    (root / "train").mkdir()
    lines = []
    for number in range(17):
        wave = 0.1 * np.random.default_rng(number).standard_normal(16000 + 2000 * number)
        soundfile.write(root / "train" / f"{number}.flac", wave, 16000)
        lines.append(f"{number} {'HELLO WORLD'[: 3 + number % 8].strip()}")
    (root / "train" / "t.trans.txt").write_text("\n".join(lines))
    return root


def model_for(task: str) -> Any:
    if task == "pretrain":
        return Data2Vec.from_recipe("audio_small", SMALL)
    trunk = Transformer(32, 2, 2, norm="post", layer_scale=None, dropout=0.2, layer_drop=0.3)
    schedule = Optimization(lr=1e-3, weight_decay=0.0, schedule="tri_stage", warmup=0.1, hold=0.4)
    network = Backbone(AudioEncoder(32, CONVS, position_groups=4), trunk)
    return SpeechCTC(network, freeze_trunk_steps=2, optimization=schedule)


def run(
    root: Path, folder: Path, task: str, workers: int, resumed: Path | None = None, **options: Any
) -> tuple[list[float], dict[str, Any]]:
    """See `stopped_runs`."""
    pl.seed_everything(3 if resumed is None else 99)  # a resumed process may start from any random state
    sizes: dict[str, Any] = {"batch_samples": 130_000, "min_seconds": 0.5, "max_seconds": 2.5}
    data = SpeechDataModule(str(root), "train", task=task, num_workers=workers, **sizes)  # type: ignore[arg-type]
    return stopped_runs.run(model_for(task), data, folder, resumed, **options)


@pytest.mark.parametrize(("task", "workers", "batches", "steps"), [("pretrain", 2, 5, (2, 4)), ("ctc", 0, 4, (2, 3))])
def test_a_run_of_epochs_that_is_resumed_again_and_again_is_exact(
    spoken: Path, tmp_path: Path, task: str, workers: int, batches: int, steps: tuple[int, ...]
) -> None:
    def again(folder: Path, resumed: Path | None) -> tuple[list[float], dict[str, Any]]:
        return run(spoken, folder, task, workers, resumed)

    assert len(stopped_runs.assert_chain_is_exact(again, tmp_path, steps)) == 3 * batches


@pytest.mark.parametrize("task", ["pretrain", "ctc"])
def test_bf16(spoken: Path, tmp_path: Path, task: str) -> None:
    exact, _ = run(spoken, tmp_path / "exact", task, 0, max_steps=2)
    rounded, end = run(spoken, tmp_path / "rounded", task, 0, max_steps=2, precision="bf16-mixed")
    torch.testing.assert_close(torch.tensor(rounded), torch.tensor(exact), rtol=0.05, atol=0.05)
    assert all(tensor.dtype == torch.float32 for tensor in end["state_dict"].values())
