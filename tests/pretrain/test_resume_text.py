"""Text that is stopped goes on exactly, in pre-training and on GLUE, order, masks and length groups included; and bf16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import stopped_runs
import torch

from d2v_lightning import Backbone, Data2Vec, GLUEClassifier, Optimization, TextEncoder, Transformer
from d2v_lightning.commands.tokenizer import save_tokenizer, train_tokenizer
from d2v_lightning.flavour import pl
from datamodules import GLUEDataModule, TextDataModule
from datamodules.text.sources import FileSource

WORDS = ["the", "cat", "sat", "on", "a", "mat", "while", "the", "dog", "ran", "and", "rain", "fell", "over", "hats"]
SMALL = {
    "student.backbone.encoder.dim": 32,
    "student.backbone.encoder.vocab_size": 280,
    "student.backbone.encoder.mask_id": 279,
    "student.backbone.transformer.dim": 32,
    "student.backbone.transformer.depth": 2,
    "student.backbone.transformer.dropout": 0.2,
    "student.backbone.transformer.num_heads": 2,
    "student.decoder.dim": 32,
    "targets.average_top_k_layers": 1,
    "ema_teacher.anneal_steps": 7,
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """41 lines of 3 to 13 words, as text and as reviews, and a tokenizer."""
    root = tmp_path_factory.mktemp("written")
    lines = [" ".join((WORDS[n % 14 :] + WORDS)[: 3 + n % 11]) for n in range(41)]
    (root / "train.txt").write_text("\n".join(lines))
    save_tokenizer(train_tokenizer(FileSource(str(root / "train.txt")), 280), root / "bpe")
    (root / "SST-2").mkdir()
    rows = [f"{line}\t{number % 2}" for number, line in enumerate(lines)]
    for split in ("train", "dev"):
        (root / "SST-2" / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *rows]))
    return root


def made_for(task: str, root: Path, workers: int) -> tuple[Any, Any]:
    common: dict[str, Any] = {"tokenizer": str(root / "bpe"), "num_workers": workers}
    if task == "pretrain":
        text = TextDataModule(
            str(root / "train.txt"), cache_dir=str(root / "cache"), block_size=32, batch_size=4, **common
        )
        return Data2Vec.from_recipe("text_small", SMALL), text
    trunk = Transformer(32, 2, 2, norm="post", layer_scale=None, dropout=0.2)
    model = GLUEClassifier("sst2", backbone=Backbone(TextEncoder(32, 280, 64, mask_id=279), trunk))
    return model, GLUEDataModule("sst2", str(root), batch_tokens=60, **common)


def run(
    root: Path, folder: Path, task: str, workers: int, resumed: Path | None = None, **options: Any
) -> tuple[list[float], dict[str, Any]]:
    """See `stopped_runs`."""
    pl.seed_everything(3 if resumed is None else 99)  # a resumed process may start from any random state
    model, data = made_for(task, root, workers)
    model.optimization = Optimization(lr=1e-3, warmup=0.1)
    return stopped_runs.run(model, data, folder, resumed, **options)


@pytest.mark.parametrize(
    ("task", "workers", "batches", "steps"), [("pretrain", 2, 10, (5, 7)), ("glue", 0, 17, (9, 13))]
)
def test_a_run_of_epochs_that_is_resumed_again_and_again_is_exact(
    written: Path, tmp_path: Path, task: str, workers: int, batches: int, steps: tuple[int, ...]
) -> None:
    def again(folder: Path, resumed: Path | None) -> tuple[list[float], dict[str, Any]]:
        return run(written, folder, task, workers, resumed)

    assert len(stopped_runs.assert_chain_is_exact(again, tmp_path, steps)) == 3 * batches


@pytest.mark.parametrize("task", ["pretrain", "glue"])
def test_bf16(written: Path, tmp_path: Path, task: str) -> None:
    exact, _ = run(written, tmp_path / "exact", task, 0, max_steps=2)
    rounded, end = run(written, tmp_path / "rounded", task, 0, max_steps=2, precision="bf16-mixed")
    torch.testing.assert_close(torch.tensor(rounded), torch.tensor(exact), rtol=0.05, atol=0.05)
    assert all(tensor.dtype == torch.float32 for tensor in end["state_dict"].values())
