"""A tokenizer of nearly 300 ids, trained once."""

from __future__ import annotations

import pytest

from d2v_lightning.commands.tokenizer import save_tokenizer, train_tokenizer
from datamodules.text.sources import FileSource

SENTENCES = ["the cat sat on the mat", "a dog ran, and the cat slept", "no dog sat on the cat", "rain fell on the hat"]


@pytest.fixture(scope="session")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Directory of a byte-level BPE with RoBERTa's special tokens."""
    folder = tmp_path_factory.mktemp("bpe")
    (folder / "text.txt").write_text("\n".join(SENTENCES * 20))
    save_tokenizer(train_tokenizer(FileSource(str(folder / "text.txt")), 300), folder / "made")
    return str(folder / "made")
