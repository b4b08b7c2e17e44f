"""TextDataModule: every token of the text in a block, masks that stay, blocks held out, and one line for each mistake."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules import TextDataModule
from datamodules.text.vocabulary import load_tokenizer

LINES = [f"the cat sat on the mat {number}" for number in range(40)]


def ready(folder: Path, bpe: str, **options: Any) -> TextDataModule:
    (folder / "a.txt").write_text("\n".join(LINES))
    usual: dict[str, Any] = {
        "files": str(folder / "a.txt"), "tokenizer": bpe, "cache_dir": str(folder / "cache"), "packing": "blocks",
        "block_size": 16, "batch_size": 4, "num_workers": 0,
    }  # fmt: skip
    data = TextDataModule(**{**usual, **options})
    data.setup("fit")
    return data


def tokens_of(blocks: Any) -> list[int]:
    rows = [blocks[index]["inputs"] for index in range(len(blocks))]
    assert all(row[0] == 0 and len(row) <= 16 for row in rows)
    return torch.cat([row[1:] for row in rows]).tolist()


def test_blocks_are_the_tokens_of_the_text_and_each_begins_as_a_text_does(tmp_path: Path, bpe: str) -> None:
    tokenizer = load_tokenizer(bpe)
    text = [token for line in LINES for token in [*tokenizer(line, add_special_tokens=False)["input_ids"], 2]]
    assert tokens_of(ready(tmp_path, bpe)._blocks["train"]) == text
    with pytest.raises(IndexError, match="permitted is"):
        ready(tmp_path, bpe)._blocks["train"][len(text)]


def test_batches_follow_from_epoch_and_block_and_validation_stays(tmp_path: Path, bpe: str) -> None:
    data = ready(tmp_path, bpe, val_fraction=0.25)

    def epoch(number: int) -> dict[int, tuple[Tensor, Tensor]]:
        loader = data.train_dataloader()
        loader.sampler.set_epoch(number)
        return {
            int(index): (inputs, mask)
            for batch in loader
            for index, inputs, mask in zip(batch["index"], batch["inputs"], batch["mask"], strict=True)
        }

    one, again, other = epoch(1), epoch(1), epoch(2)
    assert list(one) == list(again) != list(other)
    assert all(torch.equal(one[index][1], again[index][1]) for index in one)
    both = set(one) & set(other)
    assert all(torch.equal(one[index][0], other[index][0]) for index in both)
    assert not all(torch.equal(one[index][1], other[index][1]) for index in both)
    val: Any = data.val_dataloader()
    first = [batch["mask"] for batch in val]
    val.sampler.set_epoch(3)
    assert all(torch.equal(mask, batch["mask"]) for mask, batch in zip(first, val, strict=True))


def test_blocks_held_out_are_not_trained_on(tmp_path: Path, bpe: str) -> None:
    whole, data = ready(tmp_path, bpe), ready(tmp_path, bpe, val_fraction=0.25)
    train, val = (set(data._blocks[split].places.tolist()) for split in ("train", "val"))  # type: ignore[union-attr]
    assert not train & val
    assert train | val == set(range(len(whole._blocks["train"])))
    assert len(val) == round(0.25 * (len(train) + len(val)))
    assert whole.val_dataloader() == []
    with pytest.raises(ValueError, match="leaves nothing to train on"):
        ready(tmp_path, bpe, val_fraction=0.999)


def test_a_model_that_does_not_fit_the_tokenizer_is_refused(
    tmp_path: Path, bpe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(load_tokenizer(bpe))
    for encoder, message in (
        ({"max_positions": 8}, "block_size 16: the model has max_positions 8"),
        ({"vocab_size": size - 1}, f"has {size} ids, the model vocab_size {size - 1}"),
        ({"pad_id": 7}, "the model's pad_id is 7, tokenizer .* has 1"),
        ({"mask_id": 5}, f"the model's mask_id is 5, tokenizer .* has {size - 1}"),
    ):
        model = SimpleNamespace(encoder=SimpleNamespace(**encoder))
        monkeypatch.setattr("datamodules.text.datamodule.attached_model", lambda data, model=model: model)
        with pytest.raises(ValueError, match=message):
            ready(tmp_path, bpe)


def test_mistakes_get_one_line(tmp_path: Path, bpe: str) -> None:
    for stage, message in (
        ("test", "has nothing to test"),
        ("predict", "set data.predict_files"),
        ("validate", "no text to validate"),
    ):
        with pytest.raises(ValueError, match=message):
            ready(tmp_path, bpe).setup(stage)
    with pytest.raises(ValueError, match="no data: set files"):
        TextDataModule(tokenizer=bpe).setup("fit")
    with pytest.raises(ValueError, match=r"is more than .* training blocks of 16 tokens: set batch_size to at most"):
        ready(tmp_path, bpe, batch_size=500).train_dataloader()
    with pytest.warns(UserWarning, match=r"blocks are \d+ % full, because none holds two documents"):
        ready(tmp_path, bpe, packing="complete_documents", block_size=64)


def test_lines_to_predict_come_once_by_their_names(tmp_path: Path, bpe: str) -> None:
    data = ready(tmp_path, bpe, predict_files=str(tmp_path / "a.txt"))
    data.setup("predict")
    assert data.predict_paths[3] == f"{tmp_path}/a.txt:4"
    assert sorted(int(index) for batch in data.predict_dataloader() for index in batch["index"]) == list(range(40))
