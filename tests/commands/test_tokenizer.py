"""The tokenizer command: what it makes encodes and decodes any text, and what it refuses is one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from d2v_lightning.commands.tokenizer import main
from datamodules.text.vocabulary import load_tokenizer, vocabulary_of


def test_the_tokenizer_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_bytes("die Katze saß\nKatzen schlafen\n".encode() * 9 + b"\xff\n")
    out = tmp_path / "made" / "bpe"
    arguments = [str(tmp_path / "a.txt"), "--out", str(out), "--vocab_size"]
    assert main([*arguments, "270"]) == 0
    assert "1 line(s) left out" in capsys.readouterr().err
    tokenizer = load_tokenizer(str(out))
    assert tokenizer.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]) == [0, 1, 2, 3, 269]
    assert tokenizer("saß Ω")["input_ids"][0] == 0
    assert tokenizer.decode(tokenizer("die Katze Ω 🙂")["input_ids"], skip_special_tokens=True) == "die Katze Ω 🙂"
    vocabulary = vocabulary_of(tokenizer)
    ids = tokenizer("die Katze", add_special_tokens=False)["input_ids"]
    assert vocabulary.word_starts[ids].sum() == 1, "the first word has no space before it"
    assert main([*arguments, "270"]) == 2
    assert "exists: remove it" in capsys.readouterr().err
    arguments[2] = str(tmp_path / "other")
    assert main([*arguments, "100"]) == 2
    assert capsys.readouterr().err == (
        "error: vocab_size 100: permitted is 261 (256 bytes, 5 special tokens) or more\n"
    )
